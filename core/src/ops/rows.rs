//! What losses and choices of prompts do with rows of numbers. On the CPU they are candle's own operations; on a GPU, where each of
//! those costs more than its arithmetic, they are one kernel each way.

#[cfg(feature = "cuda")]
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Shape};
use candle_core::{D, Tensor};

#[cfg(feature = "cuda")]
use super::{cuda, on_gpu};
use crate::Result;

/// Norms below this are taken for it.
const LEAST: f64 = 1e-12;

/// `x - log Σ exp x` of each row of `x` `(..., C)`.
pub fn log_softmax(x: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if takes(x) {
        return Ok(x.contiguous()?.apply_op1(Row::LogSoftmax)?);
    }
    Ok(candle_nn::ops::log_softmax(x, D::Minus1)?)
}

/// `exp x / Σ exp x` of each row of `x` `(..., C)`.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if takes(x) {
        return Ok(log_softmax(x)?.exp()?);
    }
    Ok(candle_nn::ops::softmax(x, D::Minus1)?)
}

/// `x / ‖x‖` of each row of `x` `(..., D)`, where norms below 1e-12 are taken for that (PyTorch's `normalize`).
pub fn unit(x: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if takes(x) {
        return Ok(x.contiguous()?.apply_op1(Row::Unit)?);
    }
    let norm = x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.maximum(LEAST)?;
    Ok(x.broadcast_div(&norm)?)
}

/// Whether there are kernels for it.
#[cfg(feature = "cuda")]
fn takes(x: &Tensor) -> bool {
    on_gpu(x) && x.dtype() == candle_core::DType::F32
}

#[cfg(feature = "cuda")]
#[derive(Clone, Copy)]
enum Row {
    LogSoftmax,
    Unit,
}

#[cfg(feature = "cuda")]
impl CustomOp1 for Row {
    fn name(&self) -> &'static str {
        match self {
            Self::LogSoftmax => "log-softmax",
            Self::Unit => "unit-rows",
        }
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        candle_core::bail!("{} on the CPU", self.name())
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        let y = match self {
            Self::LogSoftmax => cuda::of_rows("log_softmax_forward_f32", (x, layout), None)?,
            Self::Unit => cuda::of_rows("unit_forward_f32", (x, layout), Some(LEAST as f32))?,
        };
        Ok((y, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let dy = dy.contiguous()?;
        let dx = match self {
            Self::LogSoftmax => cuda::of_pairs_of_rows("log_softmax_backward_f32", y, &dy, None)?,
            Self::Unit => cuda::of_pairs_of_rows("unit_backward_f32", x, &dy, Some(LEAST as f32))?,
        };
        Ok(Some(dx))
    }
}
