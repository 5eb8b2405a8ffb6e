//! Layer normalisation with frozen scale and shift.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Shape, Tensor, bail};

#[cfg(feature = "cuda")]
use super::cuda;
use super::{by_dtype, fused, kernel, kernel::Real, portable, slice};
use candle_core::Result;

/// `(x - mean) / sqrt(var + eps) * γ + β` over the last axis of `x` `(..., D)`; `γ` and `β` `(D,)` are frozen.
pub fn layer_norm(x: &Tensor, gamma: &Tensor, beta: &Tensor, eps: f64) -> Result<Tensor> {
    if !fused(x) {
        return portable::layer_norm(x, gamma, beta, eps);
    }
    Ok(x.contiguous()?.apply_op1(LayerNorm { gamma: gamma.clone(), beta: beta.clone(), eps })?)
}

/// The same without a graph, for what has a backward pass of its own.
pub fn layer_norm_value(x: &Tensor, gamma: &Tensor, beta: &Tensor, eps: f64) -> Result<Tensor> {
    let op = LayerNorm { gamma: gamma.clone(), beta: beta.clone(), eps };
    Ok(x.contiguous()?.apply_op1_no_bwd(&op)?)
}

/// The gradient of the input `x` for that of the output, `dy`; `plus`, the gradient that a residual connection sends past
/// the layer, is added.
pub fn layer_norm_backward(
    x: &Tensor,
    gamma: &Tensor,
    eps: f64,
    dy: &Tensor,
    plus: &Tensor,
) -> Result<Tensor> {
    let plus = plus.contiguous()?;
    Ok(x.contiguous()?.apply_op2_no_bwd(&dy.contiguous()?, &Backward { gamma, eps, plus: Some(&plus) })?)
}

struct LayerNorm {
    gamma: Tensor,
    beta: Tensor,
    eps: f64,
}

impl CustomOp1 for LayerNorm {
    fn name(&self) -> &'static str {
        "frozen-layer-norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let width = self.gamma.elem_count();
        if layout.dims().last() != Some(&width) {
            bail!("layer norm of width {width} on a tensor of shape {:?}", layout.dims());
        }
        let y = by_dtype!(x, T => {
            let x = slice::<T>(x, layout)?;
            let (gamma, beta) = (self.gamma.to_vec1::<T>()?, self.beta.to_vec1::<T>()?);
            let mut y = vec![T::default(); x.len()];
            kernel::by_rows(&mut y, width, |start, y| {
                T::layer_norm(&x[start..start + y.len()], &gamma, &beta, self.eps as T, y);
            });
            <T as Real>::storage(y)
        });
        Ok((y, layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        Ok((cuda::layer_norm(x, layout, &self.gamma, &self.beta, self.eps)?, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let backward = Backward { gamma: &self.gamma, eps: self.eps, plus: None };
        x.apply_op2_no_bwd(&dy.contiguous()?, &backward).map(Some)
    }
}

/// The gradient as an operation on `(x, dy)`.
struct Backward<'a> {
    gamma: &'a Tensor,
    eps: f64,
    plus: Option<&'a Tensor>,
}

impl CustomOp2 for Backward<'_> {
    fn name(&self) -> &'static str {
        "frozen-layer-norm-backward"
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
            let gamma = self.gamma.to_vec1::<T>()?;
            let mut dx = vec![T::default(); x.len()];
            kernel::by_rows(&mut dx, gamma.len(), |start, dx| {
                let group = start..start + dx.len();
                T::layer_norm_backward(&x[group.clone()], &gamma, self.eps as T, &dy[group], dx);
            });
            if let Some(plus) = self.plus {
                let plus = plus.flatten_all()?.to_vec1::<T>()?;
                if plus.len() != dx.len() {
                    bail!("{} numbers to be added to a gradient of shape {:?}", plus.len(), x_layout.dims());
                }
                dx.iter_mut().zip(&plus).for_each(|(dx, plus)| *dx += *plus);
            }
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
        let dx = cuda::layer_norm_backward(x, x_layout, self.gamma, self.eps, dy, dy_layout, self.plus)?;
        Ok((dx, x_layout.shape().clone()))
    }
}
