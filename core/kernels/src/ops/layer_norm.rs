//! Layer normalisation with frozen scale and shift.

use candle_core::{Result, Tensor, bail};

use super::portable;
#[cfg(feature = "cuda")]
use crate::{cuda, storage::on_gpu};
use crate::{
    slices::{self, Real},
    storage::{by_dtype, has_kernels, on_cpu},
    tape::Value,
};

/// `(x - mean) / sqrt(var + eps) * γ + β` over the last axis of `x` `(..., D)`; `gamma` and `beta` `(D,)` are frozen.
///
/// # Errors
/// Tensors whose widths differ.
pub fn layer_norm(x: &Tensor, gamma: &Tensor, beta: &Tensor, eps: f64) -> Result<Tensor> {
    if !has_kernels(x) {
        return portable::layer_norm(x, gamma, beta, eps);
    }
    let (x, scale) = (x.contiguous()?, gamma.clone());
    forward(&x, gamma, beta, eps)?.of(&x, move |x, _, dy| layer_norm_backward(x, &scale, eps, dy, None))
}

/// [`layer_norm`] without a graph.
pub fn layer_norm_value(x: &Tensor, gamma: &Tensor, beta: &Tensor, eps: f64) -> Result<Tensor> {
    Ok(forward(&x.contiguous()?, gamma, beta, eps)?.tensor())
}

/// The gradient of the input `x` for the gradient `dy` of the output, plus `plus`, the gradient of a residual connection
/// around the layer; all three `(..., D)`.
pub fn layer_norm_backward(
    x: &Tensor,
    gamma: &Tensor,
    eps: f64,
    dy: &Tensor,
    plus: Option<&Tensor>,
) -> Result<Tensor> {
    let (x, dy, plus) = (x.contiguous()?, dy.contiguous()?, plus.map(Tensor::contiguous).transpose()?);
    #[cfg(feature = "cuda")]
    if on_gpu(&x) {
        return Ok(cuda::layer_norm_backward(&x, gamma, eps, &dy, plus.as_ref())?.tensor());
    }
    by_dtype!(x.dtype(), T => {
        on_cpu!(x, T => values);
        on_cpu!(dy, T => dy);
        let gamma = gamma.to_vec1::<T>()?;
        let mut dx = vec![T::default(); values.len()];
        slices::by_rows(&mut dx, gamma.len(), |start, dx| {
            let group = start..start + dx.len();
            T::layer_norm_backward(&values[group.clone()], &gamma, eps as T, &dy[group], dx);
        });
        if let Some(plus) = plus {
            on_cpu!(plus, T => plus);
            if plus.len() != dx.len() {
                bail!("{} numbers to be added to a gradient of shape {:?}", plus.len(), x.dims());
            }
            dx.iter_mut().zip(plus).for_each(|(dx, plus)| *dx += *plus);
        }
        Ok(Value::on_cpu(dx, x.shape()).tensor())
    })
}

fn forward(x: &Tensor, gamma: &Tensor, beta: &Tensor, eps: f64) -> Result<Value> {
    let width = gamma.elem_count();
    if x.dims().last() != Some(&width) {
        bail!("layer norm of width {width} on a tensor of shape {:?}", x.dims());
    }
    #[cfg(feature = "cuda")]
    if on_gpu(x) {
        return cuda::layer_norm(x, gamma, beta, eps);
    }
    by_dtype!(x.dtype(), T => {
        on_cpu!(x, T => values);
        let (gamma, beta) = (gamma.to_vec1::<T>()?, beta.to_vec1::<T>()?);
        let mut y = vec![T::default(); values.len()];
        slices::by_rows(&mut y, width, |start, y| {
            T::layer_norm(&values[start..start + y.len()], &gamma, &beta, eps as T, y);
        });
        Ok(Value::on_cpu(y, x.shape()))
    })
}
