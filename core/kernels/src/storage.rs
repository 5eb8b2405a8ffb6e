//! Access to the elements of tensors, and selection of the kernels for them.

use std::ops::Deref;

use candle_core::{DType, Layout, Result, Storage, Tensor, bail};

use crate::slices::Real;

/// Returns whether this crate has kernels for the tensor.
pub fn has_kernels(x: &Tensor) -> bool {
    match x.dtype() {
        DType::F64 => x.device().is_cpu(),
        DType::F32 => x.device().is_cpu() || on_gpu(x),
        DType::BF16 => on_gpu(x),
        _ => false,
    }
}

/// Returns whether the tensor is on a GPU and this build has CUDA kernels.
pub fn on_gpu(x: &Tensor) -> bool {
    cfg!(feature = "cuda") && x.device().is_cuda()
}

/// Returns whether the tensor is float32 on a GPU, the type of losses, prompts and variables in every precision.
#[cfg(feature = "cuda")]
pub fn float32_on_gpu(x: &Tensor) -> bool {
    on_gpu(x) && x.dtype() == DType::F32
}

/// Returns the elements of a contiguous tensor on the CPU.
pub fn slice<'a, T: Real>((storage, layout): &'a (impl Deref<Target = Storage>, &Layout)) -> Result<&'a [T]> {
    match (&**storage, layout.contiguous_offsets()) {
        (Storage::Cpu(storage), Some((start, end))) => Ok(&storage.as_slice::<T>()?[start..end]),
        (Storage::Cpu(_), None) => bail!("expected a contiguous tensor, found {layout:?}"),
        _ => bail!("expected a tensor on the CPU"),
    }
}

/// Checks that a gradient or an added value has as many elements as `x`.
pub fn same_count(x: &Tensor, other: &Tensor) -> Result<()> {
    if x.elem_count() != other.elem_count() {
        bail!("expected tensors of equal size, found shapes {:?} and {:?}", other.dims(), x.dims());
    }
    Ok(())
}

/// Binds each `$elements` to the elements, of type `$t`, of a contiguous tensor on the CPU.
macro_rules! on_cpu {
    ($t:ty: $($tensor:expr => $elements:ident),+) => {$(
        let storage = $tensor.storage_and_layout();
        let $elements = $crate::storage::slice::<$t>(&storage)?;
    )+};
}
pub(crate) use on_cpu;

/// Returns from the caller with the result of a function of [`cuda`](crate::cuda) if `$tensor` is on a GPU and this
/// build has CUDA kernels.
macro_rules! return_on_gpu {
    ($tensor:expr => $function:ident $arguments:tt) => {
        #[cfg(feature = "cuda")]
        if $crate::storage::on_gpu($tensor) {
            return $crate::cuda::$function $arguments;
        }
    };
}
pub(crate) use return_on_gpu;

/// Runs `$body` with the element type `$t` that corresponds to `$dtype`.
macro_rules! by_dtype {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $t = f32;
                $body
            }
            candle_core::DType::F64 => {
                type $t = f64;
                $body
            }
            other => candle_core::bail!("unsupported element type {other:?}, expected f32 or f64"),
        }
    };
}
pub(crate) use by_dtype;

/// Checks that no argument of an operation on frozen weights is part of a graph: it would silently get no gradient.
pub fn check_frozen<'a>(
    operation: &str,
    arguments: impl IntoIterator<Item = (&'a str, Option<&'a Tensor>)>,
) -> Result<()> {
    for (name, tensor) in arguments {
        if tensor.is_some_and(Tensor::track_op) {
            bail!(
                "{operation}: `{name}` is trainable, but this operation treats it as frozen and sends it no gradient; use \
                 candle's operations for trainable weights, or pass `{name}.detach()`"
            );
        }
    }
    Ok(())
}
