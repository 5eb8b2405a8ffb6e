//! CUDA devices: opening without panics, memory pool, and uploads.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    env,
    path::{Path, PathBuf},
    sync::{Mutex, OnceLock, PoisonError},
};

use candle_core::{
    CudaDevice, CudaStorage, Device, Shape, Storage, Tensor,
    cuda_backend::{
        CudaStorageSlice, WrapErr,
        cudarc::driver::{CudaContext, PinnedHostSlice, result, sys},
    },
    op::BackpropOp,
};
use libloading::Library;

use crate::system::{
    device::{Missing, libraries},
    panics,
};
use cdl_kernels::{COMPUTE_CAP, probe};

/// Returns the folders listed in `CDL_CUDA_LIBS`, separated by colons. They are searched for CUDA libraries before the
/// folders of the system.
fn folders() -> Vec<PathBuf> {
    let named = env::var_os("CDL_CUDA_LIBS").unwrap_or_default();
    env::split_paths(&named).filter(|folder| folder != Path::new("")).collect()
}

/// Opens the device with the number `ordinal`. Later calls return the same device, since each opened device has its own
/// handles and compiled kernels.
pub fn open(ordinal: usize) -> Result<Device, Missing> {
    static LOADED: OnceLock<Result<Vec<Library>, Missing>> = OnceLock::new();
    static OPENED: Mutex<BTreeMap<usize, Device>> = Mutex::new(BTreeMap::new());
    LOADED.get_or_init(|| libraries::load(&folders())).as_ref().map_err(Missing::clone)?;
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(device) = opened.get(&ordinal) {
        return Ok(device.clone());
    }
    // The bindings of candle panic if anything else is missing.
    let device = panics::catch(|| connect(ordinal)).unwrap_or_else(|panic| Err(Missing::Driver(panic)))?;
    opened.insert(ordinal, device.clone());
    Ok(device)
}

/// Opens a device that can run the kernels.
fn connect(ordinal: usize) -> Result<Device, Missing> {
    let refused = |error: &dyn std::fmt::Display| {
        Missing::Driver(error.to_string().lines().next().unwrap_or_default().into())
    };
    let count = CudaContext::device_count().map_err(|error| refused(&error))?;
    if ordinal as i64 >= i64::from(count) {
        let gpus = if count == 1 { "there is 1 GPU".into() } else { format!("there are {count} GPUs") };
        return Err(Missing::Driver(format!("{gpus}, numbered from 0")));
    }
    let device = Device::new_cuda(ordinal).map_err(|error| refused(&error))?;
    if let Device::Cuda(cuda) = &device {
        let capability = cuda.cuda_stream().context().compute_capability();
        let (major, minor) = capability.map_err(|error| refused(&error))?;
        // SAFETY: tensors are used by the thread that created them, and by other threads only after the creating thread
        // has synchronised its stream (`upload`, `Vit::new`).
        unsafe { cuda.disable_event_tracking() };
        if let Err(error) = probe(cuda) {
            let needed = COMPUTE_CAP;
            return Err(Missing::Driver(format!(
                "the GPU (compute capability {major}.{minor}) or its driver cannot run kernels compiled for {needed} \
                 and the CUDA version of this build: {}",
                error.to_string().lines().next().unwrap_or_default()
            )));
        }
        if let Err(error) = keep_memory(cuda) {
            tracing::debug!("freed memory returns to the driver after each step: {error}");
        }
    }
    Ok(device)
}

/// Returns the memory pool of a device, from which tensors are allocated.
fn pool(device: &CudaDevice) -> candle_core::Result<sys::CUmemoryPool> {
    let context = device.cuda_stream().context().clone();
    // SAFETY: the device belongs to the context and lives as long as the program.
    unsafe { result::device::get_default_mem_pool(context.cu_device()) }.w()
}

/// Makes the pool keep freed memory for the next step. By default, the pool returns all memory to the driver whenever
/// the host waits for the device, and has to allocate it again.
fn keep_memory(device: &CudaDevice) -> candle_core::Result<()> {
    let mut threshold = u64::MAX;
    let (pool, attribute) = (pool(device)?, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD);
    // SAFETY: the attribute is a 64-bit number, which is read during the call.
    unsafe { result::mem_pool::set_attribute(pool, attribute, (&raw mut threshold).cast()) }.w()
}

/// Returns the peak memory of tensors on a GPU in bytes, without the memory of cuBLAS and the driver, if the driver
/// reports it.
pub fn peak_bytes(device: &Device) -> Option<u64> {
    let Device::Cuda(device) = device else { return None };
    let mut bytes = 0u64;
    let (pool, attribute) = (pool(device).ok()?, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH);
    // SAFETY: the attribute is a 64-bit number, which is written during the call.
    unsafe { result::mem_pool::get_attribute(pool, attribute, (&raw mut bytes).cast()) }.ok()?;
    Some(bytes)
}

/// Resets the peak of [`peak_bytes`] to the memory used now.
pub fn reset_peak(device: &Device) {
    let Device::Cuda(device) = device else { return };
    let mut zero = 0u64;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
    if let Ok(pool) = pool(device) {
        // SAFETY: the attribute is a 64-bit number, which is read during the call; 0 sets the peak to the current use.
        let _ = unsafe { result::mem_pool::set_attribute(pool, attribute, (&raw mut zero).cast()) };
    }
}

/// Returns the name of the GPU.
pub fn name(device: &Device) -> Option<String> {
    let Device::Cuda(device) = device else { return None };
    device.cuda_stream().context().name().ok()
}

/// Implements [`super::upload`]. Every thread has its own stream, so that a thread that prepares images copies them
/// while the kernels of another thread run.
pub fn upload(values: &[f32], shape: Shape, device: &Device) -> candle_core::Result<Tensor> {
    thread_local! {
        /// Pinned memory, which the device reads directly.
        static STAGING: RefCell<Option<PinnedHostSlice<f32>>> = const { RefCell::new(None) };
    }
    let Device::Cuda(device) = device else { return Tensor::from_slice(values, shape, device) };
    if shape.elem_count() != values.len() {
        return Err(candle_core::Error::ShapeMismatch { buffer_size: values.len(), shape });
    }
    let stream = device.cuda_stream();
    let uploaded = STAGING.with_borrow_mut(|staging| {
        let mut buffer = match staging.take().filter(|buffer| buffer.len() == values.len()) {
            Some(buffer) => buffer,
            // SAFETY: the whole buffer is written before it is read.
            None => unsafe { stream.context().alloc_pinned::<f32>(values.len()) }.w()?,
        };
        buffer.as_mut_slice().w()?.copy_from_slice(values);
        let uploaded = stream.clone_htod(&buffer).w()?;
        stream.synchronize().w()?;
        *staging = Some(buffer);
        Ok::<_, candle_core::Error>(uploaded)
    })?;
    let storage = CudaStorage { slice: CudaStorageSlice::F32(uploaded), device: device.clone() };
    Ok(Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false))
}
