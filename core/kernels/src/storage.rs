//! The elements behind a tensor, and which kernels can take them.

use candle_core::{CpuStorage, DType, Layout, Result, Tensor, bail};

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
pub fn slice<'a, T: Real>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<T>()?[start..end]),
        None => bail!("operation on a tensor that is not contiguous: {layout:?}"),
    }
}

/// Binds `$elements` to the elements of a contiguous tensor on the CPU.
macro_rules! on_cpu {
    ($tensor:expr, $t:ty => $elements:ident) => {
        let (storage, layout) = $tensor.storage_and_layout();
        let candle_core::Storage::Cpu(storage) = &*storage else {
            candle_core::bail!("a tensor is not on the CPU")
        };
        let $elements = $crate::storage::slice::<$t>(storage, layout)?;
    };
}
pub(crate) use on_cpu;

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
