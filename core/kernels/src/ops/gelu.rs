//! Exact Gaussian error linear unit (GELU).

use candle_core::{Result, Tensor};

use super::composed;
use crate::{
    slices,
    storage::{by_dtype, has_kernels, on_cpu, return_on_gpu, same_count},
    tape::Value,
};

/// Number of elements that [`slices::by_rows`] processes as one row.
const ROW: usize = 4096;

/// Computes `x Φ(x)` with the exact distribution function Φ of the standard normal distribution, for `x` of any shape.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    if !has_kernels(x) {
        return composed::gelu(x);
    }
    let x = x.contiguous()?;
    value(&x)?.of(&x, |x, _, dy| gelu_backward(x, dy))
}

/// Computes `dy * gelu'(x)`.
pub fn gelu_backward(x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let (x, dy) = (x.contiguous()?, dy.contiguous()?);
    same_count(&x, &dy)?;
    return_on_gpu!(&x => gelu_backward(&x, &dy));
    by_dtype!(x.dtype(), T => {
        on_cpu!(T: x => values, dy => dy);
        let dx = slices::by_rows(values.len(), ROW, |at, dx| {
            slices::gelu_backward(&values[at.clone()], &dy[at], dx);
        });
        Ok(Value::on_cpu(dx, x.shape()).tensor())
    })
}

/// Computes [`gelu`] of a contiguous tensor, without a graph.
fn value(x: &Tensor) -> Result<Value> {
    return_on_gpu!(x => gelu(x));
    by_dtype!(x.dtype(), T => {
        on_cpu!(T: x => values);
        let y = slices::by_rows(values.len(), ROW, |at, y| slices::gelu(&values[at], y));
        Ok(Value::on_cpu(y, x.shape()))
    })
}
