//! Frozen linear layer.

use candle_core::{Result, Shape, Tensor, bail};

use super::composed;
use crate::{
    slices::{View, gemm},
    storage::{by_dtype, check_frozen, has_kernels, on_cpu, return_on_gpu},
    tape::Value,
};

/// Computes `x Wᵀ + b`, `(..., O)`, for `x` `(..., I)` and frozen `weight` `(O, I)` and `bias` `(O,)`.
///
/// The backward pass computes only `dx = dy W`.
///
/// # Errors
/// Tensors whose shapes do not fit each other; a weight or bias that is trainable, which would get no gradient.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    check_frozen("linear", [("weight", Some(weight)), ("bias", bias)])?;
    if !has_kernels(x) {
        return composed::linear(x, weight, bias);
    }
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    linear_value(&x, &weight, bias, None)?.of(&x, move |_, _, dy| linear_backward(&weight, dy))
}

/// Computes `dy W`, the gradient of the input `(..., I)` for the gradient `dy` `(..., O)` of the output.
pub fn linear_backward(weight: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    let (weight, dy) = (weight.contiguous()?, dy.contiguous()?);
    let (rows, shape) = rows(&dy, outputs, inputs)?;
    return_on_gpu!(&dy => linear_backward(&dy, &weight, rows, shape));
    by_dtype!(dy.dtype(), T => {
        on_cpu!(T: weight => weight, dy => dy);
        let mut dx = vec![T::default(); rows * inputs];
        let (dy, weight) = (View::rows(dy, outputs), View::rows(weight, inputs));
        let threads = rayon::current_num_threads();
        gemm((rows, outputs, inputs), &mut dx, inputs, false, dy, weight, threads);
        Ok(Value::on_cpu(dx, shape).tensor())
    })
}

/// Computes [`linear`] without a graph. Adds `plus` `(..., O)`, the value of a residual connection.
pub fn linear_value(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    plus: Option<&Tensor>,
) -> Result<Value> {
    let contiguous = |tensor: Option<&Tensor>| tensor.map(Tensor::contiguous).transpose();
    let (x, weight, bias, plus) =
        (x.contiguous()?, weight.contiguous()?, contiguous(bias)?, contiguous(plus)?);
    let (outputs, inputs) = weight.dims2()?;
    let (rows, shape) = rows(&x, inputs, outputs)?;
    return_on_gpu!(&x => linear(&x, &weight, bias.as_ref(), plus.as_ref(), rows, shape));
    by_dtype!(x.dtype(), T => {
        on_cpu!(T: x => x, weight => weight);
        let mut y: Vec<T> = match &bias {
            Some(bias) => bias.to_vec1::<T>()?.repeat(rows),
            None => vec![T::default(); rows * outputs],
        };
        let (x, weight) = (View::rows(x, inputs), View::rows(weight, inputs).t());
        let threads = rayon::current_num_threads();
        gemm((rows, inputs, outputs), &mut y, outputs, bias.is_some(), x, weight, threads);
        if let Some(plus) = plus {
            on_cpu!(T: plus => plus);
            if plus.len() != y.len() {
                bail!("linear layer: cannot add {} values to an output of shape {shape:?}", plus.len());
            }
            y.iter_mut().zip(plus).for_each(|(y, plus)| *y += *plus);
        }
        Ok(Value::on_cpu(y, shape))
    })
}

/// Returns the number of rows of a tensor whose last dimension is `from`, and its shape with `to` instead.
fn rows(x: &Tensor, from: usize, to: usize) -> Result<(usize, Shape)> {
    let mut shape = x.dims().to_vec();
    match shape.last_mut() {
        Some(last) if *last == from => *last = to,
        _ => bail!("linear layer: expected a tensor (..., {from}), found shape {:?}", x.dims()),
    }
    Ok((x.elem_count() / from, shape.into()))
}
