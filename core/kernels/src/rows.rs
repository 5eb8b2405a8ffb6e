//! What losses and choices of prompts do with rows of numbers. On the CPU they are candle's own operations; on a GPU, where each of
//! those costs more than its arithmetic, they are one kernel each way.

#[cfg(feature = "cuda")]
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Shape};
use candle_core::{D, Tensor};

#[cfg(feature = "cuda")]
use super::{cuda, float32_on_gpu};
use candle_core::Result;

/// Norms below this are taken for it.
const LEAST: f64 = 1e-12;

/// `x - log Σ exp x` of each row of `x` `(..., C)`.
pub fn log_softmax(x: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if float32_on_gpu(x) {
        return Ok(x.contiguous()?.apply_op1(Row::LogSoftmax)?);
    }
    Ok(candle_nn::ops::log_softmax(x, D::Minus1)?)
}

/// `exp x / Σ exp x` of each row of `x` `(..., C)`.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if float32_on_gpu(x) {
        return Ok(log_softmax(x)?.exp()?);
    }
    Ok(candle_nn::ops::softmax(x, D::Minus1)?)
}

/// `x / ‖x‖` of each row of `x` `(..., D)`, where norms below 1e-12 are taken for that (PyTorch's `normalize`).
pub fn unit(x: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if float32_on_gpu(x) {
        return Ok(x.contiguous()?.apply_op1(Row::Unit)?);
    }
    let norm = x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.maximum(LEAST)?;
    Ok(x.broadcast_div(&norm)?)
}

#[cfg(feature = "cuda")]
#[derive(Clone, Copy)]
enum Row {
    LogSoftmax,
    Unit,
}

#[cfg(feature = "cuda")]
impl Row {
    /// Forward and backward.
    fn kernels(self) -> [cuda::RowKernel; 2] {
        let least = LEAST as f32;
        match self {
            Self::LogSoftmax => [cuda::RowKernel::LogSoftmax, cuda::RowKernel::LogSoftmaxBackward],
            Self::Unit => [cuda::RowKernel::Unit { least }, cuda::RowKernel::UnitBackward { least }],
        }
    }
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
        Ok((self.kernels()[0].of(x, layout)?, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let known = match self {
            Self::LogSoftmax => y,
            Self::Unit => x,
        };
        self.kernels()[1].of_both(known, &dy.contiguous()?).map(Some)
    }
}
