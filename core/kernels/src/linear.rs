//! A frozen linear layer.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor, bail};

#[cfg(feature = "cuda")]
use super::cuda;
use super::{by_dtype, fused, kernel, kernel::View, portable, slice};
use candle_core::Result;

/// `x Wᵀ + b` for `x` `(..., I)`, frozen `weight` `(O, I)` and `bias` `(O,)`: the bias goes in with the product, and
/// the backward pass is `dx = dy W` alone.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    if !fused(x) {
        return portable::linear(x, weight, bias);
    }
    let bias = bias.map(Tensor::contiguous).transpose()?;
    Ok(x.contiguous()?.apply_op1(Linear { weight: weight.contiguous()?, bias, plus: None })?)
}

/// The same without a graph, for what has a backward pass of its own; `plus` `(..., O)`, what a residual connection sends
/// past the layer, is added.
pub fn linear_value(x: &Tensor, weight: &Tensor, bias: &Tensor, plus: Option<&Tensor>) -> Result<Tensor> {
    let plus = plus.map(Tensor::contiguous).transpose()?;
    let op = Linear { weight: weight.contiguous()?, bias: Some(bias.contiguous()?), plus };
    Ok(x.contiguous()?.apply_op1_no_bwd(&op)?)
}

/// `dy W`, the gradient of the input of shape `(..., I)` for that of the output, `dy` `(..., O)`.
pub fn linear_backward(weight: &Tensor, dy: &Tensor) -> Result<Tensor> {
    Ok(dy.contiguous()?.apply_op1_no_bwd(&Backward { weight: &weight.contiguous()? })?)
}

/// Rows of a tensor that ends with `from` numbers, and its shape with `to` in their place.
fn rows(layout: &Layout, from: usize, to: usize) -> candle_core::Result<(usize, Shape)> {
    let mut shape = layout.dims().to_vec();
    match shape.last_mut() {
        Some(last) if *last == from => *last = to,
        _ => bail!("a linear layer takes rows of {from}, not a tensor of shape {:?}", layout.dims()),
    }
    Ok((layout.shape().elem_count() / from, shape.into()))
}

/// The elements of a constant on the CPU.
macro_rules! on_cpu {
    ($tensor:expr, $t:ty => $numbers:ident) => {
        let (storage, layout) = $tensor.storage_and_layout();
        let candle_core::Storage::Cpu(storage) = &*storage else { bail!("a tensor is not on the CPU") };
        let $numbers = slice::<$t>(storage, layout)?;
    };
}

struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    plus: Option<Tensor>,
}

impl CustomOp1 for Linear {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (outputs, inputs) = self.weight.dims2()?;
        let (rows, shape) = rows(layout, inputs, outputs)?;
        let y = by_dtype!(x, T => {
            let x = slice::<T>(x, layout)?;
            on_cpu!(self.weight, T => weight);
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
            if let Some(plus) = &self.plus {
                on_cpu!(plus, T => plus);
                if plus.len() != y.len() {
                    bail!("{} numbers to be added to an output of shape {shape:?}", plus.len());
                }
                y.iter_mut().zip(plus).for_each(|(y, plus)| *y += *plus);
            }
            <T as kernel::Real>::storage(y)
        });
        Ok((y, shape))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        let (outputs, inputs) = self.weight.dims2()?;
        let (rows, shape) = rows(layout, inputs, outputs)?;
        let y = cuda::linear(x, layout, rows, &self.weight, self.bias.as_ref(), self.plus.as_ref())?;
        Ok((y, shape))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        dy.contiguous()?.apply_op1_no_bwd(&Backward { weight: &self.weight }).map(Some)
    }
}

/// The gradient of the input as an operation on that of the output.
struct Backward<'a> {
    weight: &'a Tensor,
}

impl CustomOp1 for Backward<'_> {
    fn name(&self) -> &'static str {
        "frozen-linear-backward"
    }

    fn cpu_fwd(&self, dy: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (outputs, inputs) = self.weight.dims2()?;
        let (rows, shape) = rows(layout, outputs, inputs)?;
        let dx = by_dtype!(dy, T => {
            let dy = slice::<T>(dy, layout)?;
            on_cpu!(self.weight, T => weight);
            let mut dx = vec![T::default(); rows * inputs];
            kernel::gemm(
                (rows, outputs, inputs),
                &mut dx,
                inputs,
                false,
                1.0,
                View::rows(dy, outputs),
                View::rows(weight, inputs),
                rayon::current_num_threads(),
            );
            <T as kernel::Real>::storage(dx)
        });
        Ok((dx, shape))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, dy: &CudaStorage, layout: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        let (outputs, inputs) = self.weight.dims2()?;
        let (rows, shape) = rows(layout, outputs, inputs)?;
        Ok((cuda::linear_backward(dy, layout, rows, self.weight)?, shape))
    }
}
