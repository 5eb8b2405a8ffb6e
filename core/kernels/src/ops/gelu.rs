//! The exact Gaussian error linear unit.

use candle_core::{Result, Tensor};

use super::portable;
#[cfg(feature = "cuda")]
use crate::{cuda, storage::on_gpu};
use crate::{
    slices::{self, Real},
    storage::{by_dtype, has_kernels, on_cpu},
    tape::Value,
};

/// Elements handed to a thread at once.
const CHUNK: usize = 4096;

/// `x Φ(x)` with the exact distribution function Φ of the standard normal, for `x` of any shape.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    if !has_kernels(x) {
        return portable::gelu(x);
    }
    let x = x.contiguous()?;
    forward(&x)?.of(&x, |x, _, dy| gelu_backward(x, dy))
}

/// [`gelu`] without a graph.
pub fn gelu_value(x: &Tensor) -> Result<Tensor> {
    Ok(forward(&x.contiguous()?)?.tensor())
}

/// `dy * gelu'(x)`.
pub fn gelu_backward(x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let (x, dy) = (x.contiguous()?, dy.contiguous()?);
    #[cfg(feature = "cuda")]
    if on_gpu(&x) {
        return Ok(cuda::gelu_backward(&x, &dy)?.tensor());
    }
    by_dtype!(x.dtype(), T => {
        on_cpu!(x, T => values);
        on_cpu!(dy, T => dy);
        let mut dx = vec![T::default(); values.len()];
        slices::by_rows(&mut dx, CHUNK, |start, dx| {
            let group = start..start + dx.len();
            T::gelu_backward(&values[group.clone()], &dy[group], dx);
        });
        Ok(Value::on_cpu(dx, x.shape()).tensor())
    })
}

fn forward(x: &Tensor) -> Result<Value> {
    #[cfg(feature = "cuda")]
    if on_gpu(x) {
        return cuda::gelu(x);
    }
    by_dtype!(x.dtype(), T => {
        on_cpu!(x, T => values);
        let mut y = vec![T::default(); values.len()];
        slices::by_rows(&mut y, CHUNK, |start, y| T::gelu(&values[start..start + y.len()], y));
        Ok(Value::on_cpu(y, x.shape()))
    })
}
