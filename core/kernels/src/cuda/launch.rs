//! Launching kernels on candle's stream: modules, element types, memory and grids.

use std::ops::Deref;

use candle_core::{
    CudaDevice, CudaStorage, Layout, Result, Shape, Storage, bail,
    cuda_backend::{
        CudaDType,
        cudarc::driver::{CudaFunction, CudaSlice, CudaView, DeviceRepr, LaunchConfig},
        gemm_reduced_precision_f32,
    },
};
use half::bf16;

use crate::tape::Value;

/// Kernels compiled for no card in particular.
pub struct Module {
    name: &'static str,
    ptx: &'static str,
}

macro_rules! module {
    ($name:literal) => {
        Module {
            name: concat!("cdl-", $name),
            ptx: include_str!(concat!(env!("OUT_DIR"), "/", $name, ".ptx")),
        }
    };
}
pub const ELEMENTWISE: Module = module!("elementwise");
pub const LAYER_NORM: Module = module!("layer_norm");
pub const ATTENTION: Module = module!("attention");
pub const EMBEDDING: Module = module!("embedding");
pub const INJECTION: Module = module!("injection");
pub const ROWS: Module = module!("rows");
pub const FLAT: Module = module!("flat");

impl Module {
    /// The kernel `name`.
    pub fn function(&self, device: &CudaDevice, name: &str) -> Result<CudaFunction> {
        Ok(device.get_or_load_custom_func(name, self.name, self.ptx)?.into_cuda_function())
    }
}

/// Numbers that the kernels know.
pub trait Element: CudaDType + DeviceRepr {
    /// How names of kernels end.
    const SUFFIX: &'static str;
    /// How names of kernels of attention end: those with tensor cores where they may be used.
    fn products() -> &'static str;
}

impl Element for f32 {
    const SUFFIX: &'static str = "f32";
    fn products() -> &'static str {
        if gemm_reduced_precision_f32() { "tf32" } else { "f32" }
    }
}

impl Element for bf16 {
    const SUFFIX: &'static str = "bf16";
    fn products() -> &'static str {
        "bf16"
    }
}

/// Runs `$body` with `$t` as the element type of `$storage`.
macro_rules! by_dtype {
    ($storage:expr, $t:ident => $body:expr) => {
        match &$storage.slice {
            candle_core::cuda_backend::CudaStorageSlice::F32(_) => {
                type $t = f32;
                $body
            }
            candle_core::cuda_backend::CudaStorageSlice::BF16(_) => {
                type $t = half::bf16;
                $body
            }
            _ => bail!("operation on {:?} on a GPU, expected f32 or bf16", $storage.dtype()),
        }
    };
}

pub(super) use by_dtype;

/// The elements of a contiguous tensor.
pub fn slice<'a, T: CudaDType>(storage: &'a CudaStorage, layout: &Layout) -> Result<CudaView<'a, T>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(storage.as_cuda_slice::<T>()?.slice(start..end)),
        None => bail!("operation on a tensor that is not contiguous: {layout:?}"),
    }
}

/// Memory for `count` elements, not yet written.
pub fn room<T: DeviceRepr>(device: &CudaDevice, count: usize) -> Result<CudaSlice<T>> {
    // SAFETY: every caller hands it to a kernel that writes all of it before anything reads it.
    unsafe { device.alloc::<T>(count) }
}

/// A value on the GPU.
pub fn value<T: CudaDType>(elements: CudaSlice<T>, device: &CudaDevice, shape: impl Into<Shape>) -> Value {
    Value::new(Storage::Cuda(CudaStorage::wrap_cuda_slice(elements, device.clone())), shape)
}

/// A number as the kernels take it.
pub fn narrow(number: usize) -> Result<u32> {
    u32::try_from(number)
        .map_err(|_| candle_core::Error::Msg(format!("{number} is more than a kernel takes")))
}

/// Blocks of 128 threads: `rows` for each of `images`.
pub fn by_image(rows: usize, images: usize) -> Result<LaunchConfig> {
    Ok(LaunchConfig {
        grid_dim: (narrow(rows)?, second(images)?, 1),
        block_dim: (128, 1, 1),
        shared_mem_bytes: 0,
    })
}

/// A grid's second size.
pub fn second(number: usize) -> Result<u32> {
    match u16::try_from(number) {
        Ok(number) => Ok(number.into()),
        Err(_) => bail!("{number} images or tensors at once, a GPU takes {}", u16::MAX),
    }
}

/// Blocks of 256 threads, each thread for one vector of 16 bytes, up to what fills any card.
pub fn elementwise(count: usize, bytes: usize) -> LaunchConfig {
    let vectors = (count * bytes).div_ceil(16);
    let blocks = vectors.div_ceil(256).clamp(1, 8192) as u32;
    LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (256, 1, 1), shared_mem_bytes: 0 }
}

/// The GPU's storage of a tensor.
macro_rules! on_gpu {
    ($tensor:expr => $storage:ident, $layout:ident) => {
        let (storage, $layout) = $tensor.storage_and_layout();
        let Storage::Cuda($storage) = &*storage else { bail!("a tensor is not on the GPU") };
    };
}

pub(super) use on_gpu;

/// The elements of a tensor from its storage and layout.
pub fn elements<'a, T: CudaDType>(
    (storage, layout): &'a (impl Deref<Target = Storage>, &Layout),
) -> Result<CudaView<'a, T>> {
    match &**storage {
        Storage::Cuda(storage) => slice(storage, layout),
        _ => bail!("a tensor is not on the GPU"),
    }
}

/// The elements of a tensor that may not be there, from its storage and layout.
pub fn optional<'a, T: CudaDType>(
    tensor: &'a Option<(impl Deref<Target = Storage>, &Layout)>,
) -> Result<Option<CudaView<'a, T>>> {
    tensor.as_ref().map(elements).transpose()
}

/// An argument that may be null.
macro_rules! nullable {
    ($launch:ident, $there:expr) => {
        match $there {
            Some(there) => $launch.arg(there),
            None => $launch.arg(&0u64),
        }
    };
}

pub(super) use nullable;

/// Blocks of four warps, a warp for each row.
pub fn by_row(rows: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (rows.div_ceil(4).max(1), 1, 1), block_dim: (128, 1, 1), shared_mem_bytes: 0 }
}

pub fn same_count(a: &Layout, b: &Layout) -> Result<usize> {
    let count = a.shape().elem_count();
    if b.shape().elem_count() != count {
        bail!("a gradient of shape {:?} for values of shape {:?}", b.dims(), a.dims());
    }
    Ok(count)
}
