//! The operations on a GPU: launches of the kernels in `core/kernels`, whose sources state how they are to be launched,
//! and matrix products of cuBLAS and cuBLASLt, all on candle's stream. None of them waits for the device.

mod attention;
mod embedding;
mod injected;
mod product;
mod rows;

use std::ops::Deref;

use candle_core::{
    CudaDevice, CudaStorage, Layout, Result, Shape, Storage, Tensor,
    backend::BackendStorage,
    bail,
    cuda_backend::{
        CudaDType, WrapErr,
        cudarc::driver::{CudaFunction, CudaSlice, CudaView, DeviceRepr, LaunchConfig, PushKernelArg},
        gemm_reduced_precision_f32,
    },
    op::BackpropOp,
};
use half::bf16;

pub(super) use self::{
    attention::{attend, attend_backward, attention},
    embedding::{cut_patches, put_together},
    injected::{gather_rows, scatter_rows},
    product::{linear, linear_backward},
    rows::{RowKernel, flat, set_from_flat},
};

/// Kernels compiled for no card in particular.
struct Module {
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
const ELEMENTWISE: Module = module!("elementwise");
const LAYER_NORM: Module = module!("layer_norm");
const ATTENTION: Module = module!("attention");
const EMBEDDING: Module = module!("embedding");
const INJECTION: Module = module!("injection");
const ROWS: Module = module!("rows");
const FLAT: Module = module!("flat");

/// Whether the card takes the kernels of this build.
pub(crate) fn probe(device: &CudaDevice) -> Result<()> {
    ELEMENTWISE.function(device, "gelu_forward_f32").map(|_| ())
}

impl Module {
    fn function(&self, device: &CudaDevice, name: &str) -> Result<CudaFunction> {
        Ok(device.get_or_load_custom_func(name, self.name, self.ptx)?.into_cuda_function())
    }
}

/// Numbers that the kernels know.
trait Element: CudaDType + DeviceRepr {
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

use by_dtype;

/// The elements of a contiguous tensor.
fn slice<'a, T: CudaDType>(storage: &'a CudaStorage, layout: &Layout) -> Result<CudaView<'a, T>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(storage.as_cuda_slice::<T>()?.slice(start..end)),
        None => bail!("operation on a tensor that is not contiguous: {layout:?}"),
    }
}

/// Memory for `count` elements, not yet written.
fn room<T: DeviceRepr>(device: &CudaDevice, count: usize) -> Result<CudaSlice<T>> {
    // SAFETY: every caller hands it to a kernel that writes all of it before anything reads it.
    unsafe { device.alloc::<T>(count) }
}

/// Storage as a tensor without a graph.
fn tensor(storage: CudaStorage, shape: impl Into<Shape>) -> Tensor {
    Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false)
}

/// A number as the kernels take it.
fn narrow(number: usize) -> Result<u32> {
    u32::try_from(number)
        .map_err(|_| candle_core::Error::Msg(format!("{number} is more than a kernel takes")))
}

/// Blocks of 128 threads: `rows` for each of `images`.
fn by_image(rows: usize, images: usize) -> Result<LaunchConfig> {
    Ok(LaunchConfig {
        grid_dim: (narrow(rows)?, second(images)?, 1),
        block_dim: (128, 1, 1),
        shared_mem_bytes: 0,
    })
}

/// A grid's second size.
fn second(number: usize) -> Result<u32> {
    match u16::try_from(number) {
        Ok(number) => Ok(number.into()),
        Err(_) => bail!("{number} images or tensors at once, a GPU takes {}", u16::MAX),
    }
}

/// Blocks of 256 threads, each thread for one vector of 16 bytes, up to what fills any card.
fn elementwise(count: usize, bytes: usize) -> LaunchConfig {
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

use on_gpu;

/// The elements of a tensor that may not be there, from its storage and layout.
fn optional<'a, T: CudaDType>(
    tensor: &'a Option<(impl Deref<Target = Storage>, &Layout)>,
) -> Result<Option<CudaView<'a, T>>> {
    match tensor {
        None => Ok(None),
        Some((storage, layout)) => match &**storage {
            Storage::Cuda(storage) => slice(storage, layout).map(Some),
            _ => bail!("a tensor is not on the GPU"),
        },
    }
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

use nullable;

pub(super) fn gelu(x: &CudaStorage, layout: &Layout) -> Result<CudaStorage> {
    by_dtype!(x, T => {
        let device = x.device();
        let count = layout.shape().elem_count();
        let (x, mut y) = (slice::<T>(x, layout)?, room::<T>(device, count)?);
        let kernel = ELEMENTWISE.function(device, &format!("gelu_forward_{}", T::SUFFIX))?;
        let (stream, n) = (device.cuda_stream(), count as u64);
        let mut launch = stream.launch_builder(&kernel);
        launch.arg(&x).arg(&mut y).arg(&n);
        // SAFETY: the kernel's arguments, and as many elements in each as it is told.
        unsafe { launch.launch(elementwise(count, size_of::<T>())) }.w()?;
        Ok(CudaStorage::wrap_cuda_slice(y, device.clone()))
    })
}

pub(super) fn gelu_backward(
    x: &CudaStorage,
    x_layout: &Layout,
    dy: &CudaStorage,
    dy_layout: &Layout,
) -> Result<CudaStorage> {
    by_dtype!(x, T => {
        let device = x.device();
        let count = same_count(x_layout, dy_layout)?;
        let (x, dy) = (slice::<T>(x, x_layout)?, slice::<T>(dy, dy_layout)?);
        let mut dx = room::<T>(device, count)?;
        let kernel = ELEMENTWISE.function(device, &format!("gelu_backward_{}", T::SUFFIX))?;
        let (stream, n) = (device.cuda_stream(), count as u64);
        let mut launch = stream.launch_builder(&kernel);
        launch.arg(&x).arg(&dy).arg(&mut dx).arg(&n);
        // SAFETY: the kernel's arguments, and as many elements in each as it is told.
        unsafe { launch.launch(elementwise(count, size_of::<T>())) }.w()?;
        Ok(CudaStorage::wrap_cuda_slice(dx, device.clone()))
    })
}

fn same_count(a: &Layout, b: &Layout) -> Result<usize> {
    let count = a.shape().elem_count();
    if b.shape().elem_count() != count {
        bail!("a gradient of shape {:?} for values of shape {:?}", b.dims(), a.dims());
    }
    Ok(count)
}

/// Blocks of four warps, a warp for each row.
fn by_row(rows: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (rows.div_ceil(4).max(1), 1, 1), block_dim: (128, 1, 1), shared_mem_bytes: 0 }
}

/// `gamma` and `beta` are float32, whatever `x` is.
pub(super) fn layer_norm(
    x: &CudaStorage,
    layout: &Layout,
    gamma: &Tensor,
    beta: &Tensor,
    eps: f64,
) -> Result<CudaStorage> {
    on_gpu!(gamma => gamma, gamma_layout);
    on_gpu!(beta => beta, beta_layout);
    let (gamma, beta) = (slice::<f32>(gamma, gamma_layout)?, slice::<f32>(beta, beta_layout)?);
    let width = gamma.len();
    if layout.dims().last() != Some(&width) || beta.len() != width {
        bail!("layer norm of width {width} on a tensor of shape {:?}", layout.dims());
    }
    by_dtype!(x, T => {
        let device = x.device();
        let count = layout.shape().elem_count();
        let (rows, width, eps) = (narrow(count / width)?, narrow(width)?, eps as f32);
        let (x, mut y) = (slice::<T>(x, layout)?, room::<T>(device, count)?);
        let kernel = LAYER_NORM.function(device, &format!("layer_norm_forward_{}", T::SUFFIX))?;
        let stream = device.cuda_stream();
        let mut launch = stream.launch_builder(&kernel);
        launch.arg(&x).arg(&gamma).arg(&beta).arg(&mut y).arg(&rows).arg(&width).arg(&eps);
        // SAFETY: the kernel's arguments; `x` and `y` have `rows` rows of `width`, `gamma` and `beta` one.
        unsafe { launch.launch(by_row(rows)) }.w()?;
        Ok(CudaStorage::wrap_cuda_slice(y, device.clone()))
    })
}

pub(super) fn layer_norm_backward(
    x: &CudaStorage,
    x_layout: &Layout,
    gamma: &Tensor,
    eps: f64,
    dy: &CudaStorage,
    dy_layout: &Layout,
    plus: Option<&Tensor>,
) -> Result<CudaStorage> {
    on_gpu!(gamma => gamma, gamma_layout);
    let gamma = slice::<f32>(gamma, gamma_layout)?;
    let (count, width) = (same_count(x_layout, dy_layout)?, gamma.len());
    if x_layout.dims().last() != Some(&width) {
        bail!("layer norm of width {width} on a tensor of shape {:?}", x_layout.dims());
    }
    let plus = plus.map(Tensor::storage_and_layout);
    by_dtype!(x, T => {
        let device = x.device();
        let (rows, width, eps) = (narrow(count / width)?, narrow(width)?, eps as f32);
        let (x, dy) = (slice::<T>(x, x_layout)?, slice::<T>(dy, dy_layout)?);
        let plus = optional::<T>(&plus)?;
        if plus.as_ref().is_some_and(|plus| plus.len() != count) {
            bail!("a gradient of shape {:?} and one of another to be added to it", x_layout.dims());
        }
        let mut dx = room::<T>(device, count)?;
        let kernel = LAYER_NORM.function(device, &format!("layer_norm_backward_{}", T::SUFFIX))?;
        let stream = device.cuda_stream();
        let mut launch = stream.launch_builder(&kernel);
        launch.arg(&x).arg(&gamma).arg(&dy);
        nullable!(launch, &plus);
        launch.arg(&mut dx).arg(&rows).arg(&width).arg(&eps);
        // SAFETY: the kernel's arguments; `x`, `dy`, `plus` and `dx` have `rows` rows of `width`, `gamma` one.
        unsafe { launch.launch(by_row(rows)) }.w()?;
        Ok(CudaStorage::wrap_cuda_slice(dx, device.clone()))
    })
}
