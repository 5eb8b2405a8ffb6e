//! Operations on the rows of a tensor, for losses and for prompt selection. On the CPU they use candle's operations. On
//! a GPU, where a launch costs more than the arithmetic, each has one kernel forward and one backward.

use candle_core::{D, Result, Tensor};

#[cfg(feature = "cuda")]
use crate::{cuda, storage::float32_on_gpu};

/// Minimum divisor of a row.
const MIN_NORM: f64 = 1e-12;

/// Computes `x - log Σ exp x` of each row of `x` `(..., C)`.
pub fn log_softmax(x: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if float32_on_gpu(x) {
        let x = x.contiguous()?;
        return cuda::log_softmax(&x)?.of(&x, |_, y, dy| cuda::log_softmax_backward(y, dy));
    }
    candle_nn::ops::log_softmax(x, D::Minus1)
}

/// Computes `exp x / Σ exp x` of each row of `x` `(..., C)`.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if float32_on_gpu(x) {
        return log_softmax(x)?.exp();
    }
    candle_nn::ops::softmax(x, D::Minus1)
}

/// Computes `x / max(‖x‖, 1e-12)` of each row of `x` `(..., D)`, as PyTorch's `normalize`.
pub fn l2_normalize(x: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if float32_on_gpu(x) {
        let x = x.contiguous()?;
        return cuda::l2_normalize(&x, MIN_NORM)?
            .of(&x, |x, _, dy| cuda::l2_normalize_backward(x, dy, MIN_NORM));
    }
    let norm = x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.maximum(MIN_NORM)?;
    x.broadcast_div(&norm)
}
