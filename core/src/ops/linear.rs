//! A frozen linear layer.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor, bail};

#[cfg(feature = "cuda")]
use super::cuda;
use super::{by_dtype, fused, kernel, kernel::View, portable, slice};
use crate::Result;

/// `x Wᵀ + b` for `x` `(..., I)`, frozen `weight` `(O, I)` and `bias` `(O,)`: the bias goes in with the product, and
/// the backward pass is `dx = dy W` alone.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    if !fused(x) {
        return portable::linear(x, weight, bias);
    }
    let op = Linear { weight: weight.contiguous()?, bias: bias.map(Tensor::contiguous).transpose()? };
    Ok(x.contiguous()?.apply_op1(op)?)
}

/// The same without a graph, for what has a backward pass of its own.
pub(crate) fn linear_value(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let op = Linear { weight: weight.contiguous()?, bias: Some(bias.contiguous()?) };
    Ok(x.contiguous()?.apply_op1_no_bwd(&op)?)
}

/// `dy W`, the gradient of the input of shape `(..., I)` for that of the output, `dy` `(..., O)`.
pub(crate) fn linear_backward(weight: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    let mut shape = dy.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = inputs;
    }
    Ok(dy.reshape(((), outputs))?.matmul(weight)?.reshape(shape)?)
}

struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Rows of an input, and the output's shape.
    fn shape(&self, layout: &Layout) -> candle_core::Result<(usize, Shape)> {
        let (outputs, inputs) = self.weight.dims2()?;
        let mut shape = layout.dims().to_vec();
        match shape.last_mut() {
            Some(last) if *last == inputs => *last = outputs,
            _ => bail!("linear layer of {inputs} inputs on a tensor of shape {:?}", layout.dims()),
        }
        Ok((layout.shape().elem_count() / inputs, shape.into()))
    }
}

impl CustomOp1 for Linear {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (outputs, inputs) = self.weight.dims2()?;
        let (rows, shape) = self.shape(layout)?;
        let y = by_dtype!(x, T => {
            let x = slice::<T>(x, layout)?;
            let (storage, weight_layout) = self.weight.storage_and_layout();
            let candle_core::Storage::Cpu(storage) = &*storage else { bail!("weight is not on the CPU") };
            let weight = slice::<T>(storage, weight_layout)?;
            let mut y: Vec<T> = match &self.bias {
                Some(bias) => bias.to_vec1::<T>()?.repeat(rows),
                None => vec![T::default(); rows * outputs],
            };
            kernel::gemm(
                (rows, inputs, outputs),
                &mut y,
                outputs,
                self.bias.is_some(),
                1.0,
                View::rows(x, inputs),
                View::rows(weight, inputs).t(),
                rayon::current_num_threads(),
            );
            <T as kernel::Real>::storage(y)
        });
        Ok((y, shape))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        let (rows, shape) = self.shape(layout)?;
        Ok((cuda::linear(x, layout, rows, &self.weight, self.bias.as_ref())?, shape))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let (outputs, _) = self.weight.dims2()?;
        let dx = dy.reshape(((), outputs))?.matmul(&self.weight)?;
        dx.reshape(x.shape()).map(Some)
    }
}
