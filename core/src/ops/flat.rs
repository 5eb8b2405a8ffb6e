//! Many tensors as one row of numbers, and back.

use candle_core::{Tensor, Var};

#[cfg(feature = "cuda")]
use super::{cuda, on_gpu};
use crate::Result;

/// The numbers of `tensors` one after the other, `(n,)`, without their graph.
pub(crate) fn flat(tensors: &[&Tensor]) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(candle_core::Device::Cuda(device)) = tensors.first().map(|tensor| tensor.device())
        && tensors.iter().all(|tensor| tensor.dtype() == candle_core::DType::F32)
    {
        return Ok(cuda::flat(tensors, device)?);
    }
    let flat = tensors.iter().map(|tensor| Ok(tensor.detach().flatten_all()?)).collect::<Result<Vec<_>>>()?;
    Ok(Tensor::cat(&flat, 0)?)
}

/// Gives `vars` the numbers of `row`, in their order.
pub(crate) fn set_from_flat(vars: &[&Var], row: &Tensor) -> Result<()> {
    #[cfg(feature = "cuda")]
    if on_gpu(row)
        && row.is_contiguous()
        && vars.iter().all(|var| var.is_contiguous() && var.dtype() == row.dtype())
    {
        return Ok(cuda::set_from_flat(vars, row)?);
    }
    let mut start = 0;
    for var in vars {
        var.set(&row.narrow(0, start, var.elem_count())?.reshape(var.shape())?)?;
        start += var.elem_count();
    }
    Ok(())
}
