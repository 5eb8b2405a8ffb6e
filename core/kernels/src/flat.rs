//! Many tensors as one row of numbers, and back.

use candle_core::{Tensor, Var};

#[cfg(feature = "cuda")]
use super::{cuda, float32_on_gpu};
use candle_core::Result;

/// The numbers of `tensors` one after the other, `(n,)`, without their graph.
pub fn flat(tensors: &[&Tensor]) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if tensors.iter().all(|tensor| float32_on_gpu(tensor)) {
        return Ok(cuda::flat(tensors)?);
    }
    let flat = tensors.iter().map(|tensor| Ok(tensor.detach().flatten_all()?)).collect::<Result<Vec<_>>>()?;
    Ok(Tensor::cat(&flat, 0)?)
}

/// Gives `vars` the numbers of `row`, in their order.
pub fn set_from_flat(vars: &[&Var], row: &Tensor) -> Result<()> {
    #[cfg(feature = "cuda")]
    if float32_on_gpu(row) && vars.iter().all(|var| float32_on_gpu(var) && var.is_contiguous()) {
        return Ok(cuda::set_from_flat(vars, &row.contiguous()?)?);
    }
    let mut start = 0;
    for var in vars {
        var.set(&row.narrow(0, start, var.elem_count())?.reshape(var.shape())?)?;
        start += var.elem_count();
    }
    Ok(())
}
