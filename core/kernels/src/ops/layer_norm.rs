//! Layer normalisation with frozen scale and shift.

use candle_core::{Result, Tensor, bail};

use super::composed;
use crate::{
    slices,
    storage::{by_dtype, check_frozen, has_kernels, on_cpu, return_on_gpu, same_count},
    tape::Value,
};

/// Computes `(x - mean) / sqrt(var + eps) * γ + β` over the last axis of `x` `(..., D)`. `gamma` and `beta` `(D,)` are
/// frozen.
///
/// # Errors
/// Tensors whose widths differ; a scale or shift that is trainable, which would get no gradient.
pub fn layer_norm(x: &Tensor, gamma: &Tensor, beta: &Tensor, eps: f64) -> Result<Tensor> {
    check_frozen("layer_norm", [("gamma", Some(gamma)), ("beta", Some(beta))])?;
    if !has_kernels(x) {
        return composed::layer_norm(x, gamma, beta, eps);
    }
    let (x, scale) = (x.contiguous()?, gamma.clone());
    value(&x, gamma, beta, eps)?.of(&x, move |x, _, dy| layer_norm_backward(x, &scale, eps, dy, None))
}

/// Returns the gradient of the input `x` for the gradient `dy` of the output. Adds `plus`, the gradient of a residual
/// connection around the layer. All have the shape `(..., D)`.
pub fn layer_norm_backward(
    x: &Tensor,
    gamma: &Tensor,
    eps: f64,
    dy: &Tensor,
    plus: Option<&Tensor>,
) -> Result<Tensor> {
    let (x, dy, plus) = (x.contiguous()?, dy.contiguous()?, plus.map(Tensor::contiguous).transpose()?);
    check_width(&x, gamma)?;
    [Some(&dy), plus.as_ref()].into_iter().flatten().try_for_each(|other| same_count(&x, other))?;
    return_on_gpu!(&x => layer_norm_backward(&x, gamma, eps, &dy, plus.as_ref()));
    by_dtype!(x.dtype(), T => {
        on_cpu!(T: x => values, dy => dy);
        let gamma = gamma.to_vec1::<T>()?;
        let mut dx = slices::by_rows(values.len(), gamma.len(), |at, dx| {
            slices::layer_norm_backward(&values[at.clone()], &gamma, eps as T, &dy[at], dx);
        });
        if let Some(plus) = plus {
            on_cpu!(T: plus => plus);
            dx.iter_mut().zip(plus).for_each(|(dx, plus)| *dx += *plus);
        }
        Ok(Value::on_cpu(dx, x.shape()).tensor())
    })
}

/// Computes [`layer_norm`] of a contiguous tensor, without a graph.
fn value(x: &Tensor, gamma: &Tensor, beta: &Tensor, eps: f64) -> Result<Value> {
    check_width(x, gamma)?;
    same_count(gamma, beta)?;
    return_on_gpu!(x => layer_norm(x, gamma, beta, eps));
    by_dtype!(x.dtype(), T => {
        on_cpu!(T: x => values);
        let (gamma, beta) = (gamma.to_vec1::<T>()?, beta.to_vec1::<T>()?);
        let y = slices::by_rows(values.len(), gamma.len(), |at, y| {
            slices::layer_norm(&values[at], &gamma, &beta, eps as T, y);
        });
        Ok(Value::on_cpu(y, x.shape()))
    })
}

fn check_width(x: &Tensor, gamma: &Tensor) -> Result<()> {
    let width = gamma.elem_count();
    if x.dims().last() != Some(&width) {
        bail!("layer norm: expected a tensor (..., {width}), found shape {:?}", x.dims());
    }
    Ok(())
}
