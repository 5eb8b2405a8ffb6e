//! Launching kernels on candle's stream: modules, element types, arguments, memory and grids.

use std::ops::Deref;

use candle_core::{
    CudaDevice, CudaStorage, Layout, Result, Shape, Storage, bail,
    cuda_backend::{
        CudaDType,
        cudarc::driver::{
            CudaFunction, CudaSlice, CudaView, DeviceRepr, LaunchArgs, LaunchConfig, PushKernelArg,
        },
        gemm_reduced_precision_f32,
    },
};
use half::bf16;

use crate::tape::Value;

/// Kernels compiled to PTX, which the driver compiles for its GPU.
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
    /// Returns the kernel `name` for elements of type `T`.
    pub fn kernel<T: Element>(&self, device: &CudaDevice, name: &str) -> Result<CudaFunction> {
        self.function(device, &format!("{name}_{}", T::SUFFIX))
    }

    /// Returns the kernel whose full name is `name`.
    pub fn function(&self, device: &CudaDevice, name: &str) -> Result<CudaFunction> {
        Ok(device.get_or_load_custom_func(name, self.name, self.ptx)?.into_cuda_function())
    }
}

/// Element types for which kernels are compiled.
pub trait Element: CudaDType + DeviceRepr {
    /// Suffix of the names of most kernels.
    const SUFFIX: &'static str;
    /// Returns the arithmetic of matrix products, a suffix of the names of the attention kernels: `bf16` or `tf32` on
    /// tensor cores, or `f32`.
    fn arithmetic() -> &'static str;
}

impl Element for f32 {
    const SUFFIX: &'static str = "f32";
    fn arithmetic() -> &'static str {
        if gemm_reduced_precision_f32() { "tf32" } else { "f32" }
    }
}

impl Element for bf16 {
    const SUFFIX: &'static str = "bf16";
    fn arithmetic() -> &'static str {
        "bf16"
    }
}

/// Runs `$body` with the element type `$t` that corresponds to `$dtype`.
macro_rules! by_dtype {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $t = f32;
                $body
            }
            candle_core::DType::BF16 => {
                type $t = half::bf16;
                $body
            }
            other => candle_core::bail!("unsupported element type {other:?} on a GPU, expected f32 or bf16"),
        }
    };
}
pub(super) use by_dtype;

/// Shadows each contiguous tensor by a view of its elements, which have the given type.
macro_rules! views {
    ($($tensor:ident: $t:ty),+) => {$(
        let storage = $tensor.storage_and_layout();
        let $tensor = $crate::cuda::launch::elements::<$t>(&storage)?;
    )+};
}
pub(super) use views;

/// Returns the elements of a contiguous tensor from its storage and layout.
pub fn elements<'a, T: CudaDType>(
    (storage, layout): &'a (impl Deref<Target = Storage>, &Layout),
) -> Result<CudaView<'a, T>> {
    match (&**storage, layout.contiguous_offsets()) {
        (Storage::Cuda(storage), Some((start, end))) => Ok(storage.as_cuda_slice::<T>()?.slice(start..end)),
        (Storage::Cuda(_), None) => bail!("expected a contiguous tensor, found {layout:?}"),
        _ => bail!("expected a tensor on the GPU"),
    }
}

/// Returns the elements of an optional tensor from its storage and layout.
pub fn optional<'a, T: CudaDType>(
    tensor: &'a Option<(impl Deref<Target = Storage>, &Layout)>,
) -> Result<Option<CudaView<'a, T>>> {
    tensor.as_ref().map(elements).transpose()
}

/// Optional and multiple arguments of a kernel.
pub trait Arguments<'a>: Sized {
    /// Adds an argument, or null for `None`.
    fn or_null<T>(&mut self, argument: Option<T>) -> &mut Self
    where
        Self: PushKernelArg<T>;

    /// Adds several numbers as one argument each.
    fn numbers(&mut self, numbers: &'a [u32]) -> &mut Self;
}

impl<'a> Arguments<'a> for LaunchArgs<'a> {
    fn or_null<T>(&mut self, argument: Option<T>) -> &mut Self
    where
        Self: PushKernelArg<T>,
    {
        match argument {
            Some(argument) => self.arg(argument),
            None => PushKernelArg::<&u64>::arg(self, &0),
        }
    }

    fn numbers(&mut self, numbers: &'a [u32]) -> &mut Self {
        numbers.iter().fold(self, |launch, number| launch.arg(number))
    }
}

/// Allocates memory for `count` elements without initialising it.
pub fn uninitialized<T: DeviceRepr>(device: &CudaDevice, count: usize) -> Result<CudaSlice<T>> {
    // SAFETY: every caller passes the memory to a kernel or copy that writes all of it before anything reads it, or, as
    // a workspace, to cuBLASLt, which reads only what it wrote.
    unsafe { device.alloc::<T>(count) }
}

/// Creates a value on the GPU.
pub fn value<T: CudaDType>(elements: CudaSlice<T>, device: &CudaDevice, shape: impl Into<Shape>) -> Value {
    Value::new(Storage::Cuda(CudaStorage::wrap_cuda_slice(elements, device.clone())), shape)
}

/// Converts a number to the integer type of kernel arguments.
pub fn narrow(number: usize) -> Result<u32> {
    u32::try_from(number)
        .map_err(|_| candle_core::Error::Msg(format!("{number} exceeds the 32 bits of a kernel argument")))
}

/// Returns a grid of blocks of `threads` threads without shared memory.
pub fn grid(blocks: (u32, u32, u32), threads: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: blocks, block_dim: (threads, 1, 1), shared_mem_bytes: 0 }
}

/// Returns a grid of blocks of `threads` threads: `blocks` for each of `parts` images or tensors.
pub fn by_part(blocks: usize, parts: usize, threads: u32) -> Result<LaunchConfig> {
    match u16::try_from(parts) {
        Ok(parts) => Ok(grid((narrow(blocks)?, parts.into(), 1), threads)),
        Err(_) => bail!("{parts} images or tensors in one launch, expected at most {}", u16::MAX),
    }
}

/// Returns a grid of blocks of 256 threads, one thread per vector of 16 bytes, up to the capacity of any GPU.
pub fn by_vector(bytes: usize) -> LaunchConfig {
    grid((bytes.div_ceil(16).div_ceil(256).clamp(1, 8192) as u32, 1, 1), 256)
}

/// Returns a grid of blocks of four warps, one warp per row.
pub fn by_row(rows: u32) -> LaunchConfig {
    grid((rows.div_ceil(4).max(1), 1, 1), 128)
}
