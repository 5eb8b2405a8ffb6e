//! The elements behind a tensor, and which kernels can take them.

use std::ops::Deref;

use candle_core::{DType, Layout, Result, Storage, Tensor, bail};

use crate::slices::Real;

/// Whether there are kernels for this tensor.
pub fn has_kernels(x: &Tensor) -> bool {
    match x.dtype() {
        DType::F64 => x.device().is_cpu(),
        DType::F32 => x.device().is_cpu() || on_gpu(x),
        DType::BF16 => on_gpu(x),
        _ => false,
    }
}

/// Whether the tensor lies where the CUDA kernels of this build can take it.
pub fn on_gpu(x: &Tensor) -> bool {
    cfg!(feature = "cuda") && x.device().is_cuda()
}

/// Whether the tensor is float32 on a GPU, as losses, prompts and variables are in every precision.
#[cfg(feature = "cuda")]
pub fn float32_on_gpu(x: &Tensor) -> bool {
    on_gpu(x) && x.dtype() == DType::F32
}

/// The elements of a contiguous tensor.
pub fn slice<'a, T: Real>((storage, layout): &'a (impl Deref<Target = Storage>, &Layout)) -> Result<&'a [T]> {
    match (&**storage, layout.contiguous_offsets()) {
        (Storage::Cpu(storage), Some((start, end))) => Ok(&storage.as_slice::<T>()?[start..end]),
        (Storage::Cpu(_), None) => bail!("operation on a tensor that is not contiguous: {layout:?}"),
        _ => bail!("a tensor is not on the CPU"),
    }
}

/// Checks that a gradient, or a value that is added, has as many elements as `x`.
pub fn same_count(x: &Tensor, other: &Tensor) -> Result<()> {
    if x.elem_count() != other.elem_count() {
        bail!("a tensor of shape {:?} beside one of shape {:?}", other.dims(), x.dims());
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

/// Returns the value of a function of [`cuda`](crate::cuda) where the kernels of this build can take `$tensor`.
macro_rules! return_on_gpu {
    ($tensor:expr => $function:ident $arguments:tt) => {
        #[cfg(feature = "cuda")]
        if $crate::storage::on_gpu($tensor) {
            return $crate::cuda::$function $arguments;
        }
    };
}
pub(crate) use return_on_gpu;

/// Runs `$body` with `$t` as the element type that `$dtype` names.
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
            other => candle_core::bail!("operation on {other:?}, expected f32 or f64"),
        }
    };
}
pub(crate) use by_dtype;
