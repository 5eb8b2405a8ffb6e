//! Conversion of many tensors to one flat row, and back.

use candle_core::{Result, Tensor, Var};

#[cfg(feature = "cuda")]
use crate::{cuda, storage::float32_on_gpu};

/// Concatenates the elements of `tensors` to one row `(n,)`, without their graph.
///
/// # Errors
/// Tensors of different types or devices.
pub fn flat(tensors: &[&Tensor]) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if tensors.iter().all(|tensor| float32_on_gpu(tensor)) {
        return cuda::flat(tensors);
    }
    let flat = tensors.iter().map(|tensor| tensor.detach().flatten_all()).collect::<Result<Vec<_>>>()?;
    Tensor::cat(&flat, 0)
}

/// Sets `vars` to the elements of `row` `(n,)`, in their order.
///
/// # Errors
/// A row shorter than all variables together, or of another type or device.
pub fn assign_from_flat(vars: &[&Var], row: &Tensor) -> Result<()> {
    #[cfg(feature = "cuda")]
    if float32_on_gpu(row) && vars.iter().all(|var| float32_on_gpu(var) && var.is_contiguous()) {
        return cuda::assign_from_flat(vars, &row.contiguous()?);
    }
    let mut start = 0;
    for var in vars {
        var.set(&row.narrow(0, start, var.elem_count())?.reshape(var.shape())?)?;
        start += var.elem_count();
    }
    Ok(())
}
