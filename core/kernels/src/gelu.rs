//! The exact Gaussian error linear unit.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Shape, Tensor};

#[cfg(feature = "cuda")]
use super::cuda;
use super::{by_dtype, fused, kernel, kernel::Real, portable, slice};
use candle_core::Result;

/// Elements handed to a thread at once.
const CHUNK: usize = 4096;

/// `x Φ(x)` with the exact distribution function Φ of the standard normal.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    if !fused(x) {
        return portable::gelu(x);
    }
    Ok(x.contiguous()?.apply_op1(Gelu)?)
}

/// The same without a graph, for what has a backward pass of its own.
pub fn gelu_value(x: &Tensor) -> Result<Tensor> {
    Ok(x.contiguous()?.apply_op1_no_bwd(&Gelu)?)
}

/// `dy * gelu'(x)`.
pub fn gelu_backward(x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    Ok(x.contiguous()?.apply_op2_no_bwd(&dy.contiguous()?, &Backward)?)
}

struct Gelu;

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let y = by_dtype!(x, T => {
            let x = slice::<T>(x, layout)?;
            let mut y = vec![T::default(); x.len()];
            kernel::by_rows(&mut y, CHUNK, |start, y| T::gelu(&x[start..start + y.len()], y));
            <T as Real>::storage(y)
        });
        Ok((y, layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        Ok((cuda::gelu(x, layout)?, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        x.apply_op2_no_bwd(&dy.contiguous()?, &Backward).map(Some)
    }
}

/// The gradient as an operation on `(x, dy)`.
struct Backward;

impl CustomOp2 for Backward {
    fn name(&self) -> &'static str {
        "gelu-backward"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        dy: &CpuStorage,
        dy_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let dx = by_dtype!(x, T => {
            let (x, dy) = (slice::<T>(x, x_layout)?, slice::<T>(dy, dy_layout)?);
            let mut dx = vec![T::default(); x.len()];
            kernel::by_rows(&mut dx, CHUNK, |start, dx| {
                let group = start..start + dx.len();
                T::gelu_backward(&x[group.clone()], &dy[group], dx);
            });
            <T as Real>::storage(dx)
        });
        Ok((dx, x_layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        dy: &CudaStorage,
        dy_layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        Ok((cuda::gelu_backward(x, x_layout, dy, dy_layout)?, x_layout.shape().clone()))
    }
}
