//! The operations on a GPU: launches of the kernels in `core/kernels`, whose sources state how they are to be launched,
//! and matrix products of cuBLAS, all on candle's stream. None of them waits for the device.

mod attention;

use std::{cell::RefCell, collections::HashMap, rc::Rc};

use candle_core::{
    CudaDevice, CudaStorage, Layout, Result, Storage, Tensor,
    backend::BackendStorage,
    bail,
    cuda_backend::{
        CudaDType, CudaStorageSlice, DeviceId, WrapErr,
        cudarc::{
            cublaslt::{CudaBlasLT, Matmul, MatmulConfig},
            driver::{CudaFunction, CudaSlice, CudaView, DeviceRepr, LaunchConfig, PushKernelArg},
        },
        gemm_reduced_precision_f32,
    },
};
use half::bf16;

pub(super) use self::attention::{attend, attend_backward, attention};
use crate::panics;

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
            CudaStorageSlice::F32(_) => {
                type $t = f32;
                $body
            }
            CudaStorageSlice::BF16(_) => {
                type $t = bf16;
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

/// A number as the kernels take it.
fn narrow(number: usize) -> Result<u32> {
    u32::try_from(number)
        .map_err(|_| candle_core::Error::Msg(format!("{number} rows are more than a kernel takes")))
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
        let Storage::Cuda($storage) = &*storage else { bail!("a frozen tensor is not on the GPU") };
    };
}

use on_gpu;

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
) -> Result<CudaStorage> {
    on_gpu!(gamma => gamma, gamma_layout);
    let gamma = slice::<f32>(gamma, gamma_layout)?;
    let (count, width) = (same_count(x_layout, dy_layout)?, gamma.len());
    if x_layout.dims().last() != Some(&width) {
        bail!("layer norm of width {width} on a tensor of shape {:?}", x_layout.dims());
    }
    by_dtype!(x, T => {
        let device = x.device();
        let (rows, width, eps) = (narrow(count / width)?, narrow(width)?, eps as f32);
        let (x, dy) = (slice::<T>(x, x_layout)?, slice::<T>(dy, dy_layout)?);
        let mut dx = room::<T>(device, count)?;
        let kernel = LAYER_NORM.function(device, &format!("layer_norm_backward_{}", T::SUFFIX))?;
        let stream = device.cuda_stream();
        let mut launch = stream.launch_builder(&kernel);
        launch.arg(&x).arg(&gamma).arg(&dy).arg(&mut dx).arg(&rows).arg(&width).arg(&eps);
        // SAFETY: the kernel's arguments; `x`, `dy` and `dx` have `rows` rows of `width`, `gamma` one.
        unsafe { launch.launch(by_row(rows)) }.w()?;
        Ok(CudaStorage::wrap_cuda_slice(dx, device.clone()))
    })
}

/// `x Wᵀ + b` for `rows` rows. bf16 and TF32 add the bias within the product; float32 products of cuBLAS that do are
/// never exact, so there it is added after.
pub(super) fn linear(
    x: &CudaStorage,
    layout: &Layout,
    rows: usize,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> Result<CudaStorage> {
    let (outputs, inputs) = weight.dims2()?;
    let width = narrow(outputs)?;
    on_gpu!(weight => weight, weight_layout);
    let device = x.device();
    let size = (rows, inputs, outputs);
    // cuBLASLt is told that its operands begin where memory was allocated.
    let whole = layout.start_offset() == 0 && weight_layout.start_offset() == 0;
    let bias_is_whole = |bias: &Tensor| bias.layout().start_offset() == 0;
    match (&x.slice, bias) {
        (CudaStorageSlice::BF16(_), Some(bias)) if whole && bias_is_whole(bias) => {
            product_with_bias::<bf16>(x, layout, size, weight, weight_layout, bias)
        }
        (CudaStorageSlice::F32(_), Some(bias))
            if whole && bias_is_whole(bias) && gemm_reduced_precision_f32() =>
        {
            product_with_bias::<f32>(x, layout, size, weight, weight_layout, bias)
        }
        _ => {
            let flat = Layout::contiguous_with_offset((rows, inputs), layout.start_offset());
            let transposed = weight_layout.transpose(0, 1)?;
            let y = x.matmul(weight, (1, rows, outputs, inputs), &flat, &transposed)?;
            let Some(bias) = bias else { return Ok(y) };
            on_gpu!(bias => bias, bias_layout);
            by_dtype!(x, T => {
                let bias = slice::<T>(bias, bias_layout)?;
                if bias.len() != outputs {
                    bail!("a bias of {} for {outputs} outputs", bias.len());
                }
                let mut y = y;
                let kernel = ELEMENTWISE.function(device, &format!("add_bias_{}", T::SUFFIX))?;
                let (stream, count) = (device.cuda_stream(), rows as u64);
                let values = y.as_cuda_slice_mut::<T>()?;
                let mut launch = stream.launch_builder(&kernel);
                launch.arg(values).arg(&bias).arg(&count).arg(&width);
                // SAFETY: the kernel's arguments; `y` has `rows` rows of `width`, the bias one.
                unsafe { launch.launch(elementwise(rows * outputs, size_of::<T>())) }.w()?;
                Ok(y)
            })
        }
    }
}

/// cuBLASLt adds the bias to the rows of column-major matrices, so the product is computed transposed: `Yᵀ = W Xᵀ + b`.
fn product_with_bias<T: Element>(
    x: &CudaStorage,
    layout: &Layout,
    (rows, inputs, outputs): (usize, usize, usize),
    weight: &CudaStorage,
    weight_layout: &Layout,
    bias: &Tensor,
) -> Result<CudaStorage>
where
    CudaBlasLT: Matmul<T>,
{
    let device = x.device();
    on_gpu!(bias => bias, bias_layout);
    let (x, weight) = (slice::<T>(x, layout)?, slice::<T>(weight, weight_layout)?);
    let bias = slice::<T>(bias, bias_layout)?;
    if x.len() != rows * inputs || weight.len() != outputs * inputs || bias.len() != outputs {
        bail!(
            "a linear layer of {inputs} inputs and {outputs} outputs on {rows} rows of {} numbers",
            x.len()
        );
    }
    let mut y = room::<T>(device, rows * outputs)?;
    let product = MatmulConfig {
        transa: true,
        transb: false,
        transc: false,
        m: outputs as u64,
        n: rows as u64,
        k: inputs as u64,
        alpha: 1.0,
        lda: inputs as i64,
        ldb: inputs as i64,
        beta: 0.0,
        ldc: outputs as i64,
        stride_a: None,
        stride_b: None,
        stride_c: None,
        stride_bias: None,
        batch_size: None,
    };
    let handle = products(device)?;
    // SAFETY: the lengths were compared with the sizes above, and `y` is as large as the product.
    let done = unsafe { handle.matmul(product, &weight, &x, &mut y, Some(&bias), None) };
    done.map_err(|error| candle_core::Error::Msg(format!("cuBLASLt: {error:?}")))?;
    Ok(CudaStorage::wrap_cuda_slice(y, device.clone()))
}

/// cuBLASLt on the device, made once for each thread: a thread has a stream of its own, and its products a workspace.
fn products(device: &CudaDevice) -> Result<Rc<CudaBlasLT>> {
    thread_local! {
        static HANDLES: RefCell<HashMap<DeviceId, Rc<CudaBlasLT>>> = RefCell::default();
    }
    HANDLES.with_borrow_mut(|handles| {
        if let Some(handle) = handles.get(&device.id()) {
            return Ok(handle.clone());
        }
        // It panics where there is no room for the workspace.
        let made = panics::catch(|| CudaBlasLT::new(device.cuda_stream()));
        let fail = |reason: String| candle_core::Error::Msg(format!("cuBLASLt: {reason}"));
        let handle = Rc::new(made.map_err(fail)?.map_err(|error| fail(format!("{error:?}")))?);
        handles.insert(device.id(), handle.clone());
        Ok(handle)
    })
}
