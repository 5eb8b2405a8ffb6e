//! CUDA devices: opening one without ever panicking, what it keeps, and how images get there.

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

/// Folders that are looked into for CUDA's libraries before the system's own: those that `CDL_CUDA_LIBS` names,
/// separated by colons.
fn folders() -> Vec<PathBuf> {
    let named = env::var_os("CDL_CUDA_LIBS").unwrap_or_default();
    env::split_paths(&named).filter(|folder| folder != Path::new("")).collect()
}

/// The device with this number, opened once: each has handles and compiled kernels of its own.
pub fn open(ordinal: usize) -> Result<Device, Missing> {
    static LOADED: OnceLock<Result<Vec<Library>, Missing>> = OnceLock::new();
    static OPENED: Mutex<BTreeMap<usize, Device>> = Mutex::new(BTreeMap::new());
    LOADED.get_or_init(|| libraries::load(&folders())).as_ref().map_err(Missing::clone)?;
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(device) = opened.get(&ordinal) {
        return Ok(device.clone());
    }
    // Whatever else is missing, candle's bindings answer with a panic.
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
        let there = if count == 1 { "there is one GPU".into() } else { format!("there are {count} GPUs") };
        return Err(Missing::Driver(format!("{there}, counted from 0")));
    }
    let device = Device::new_cuda(ordinal).map_err(|error| refused(&error))?;
    if let Device::Cuda(cuda) = &device {
        let capability = cuda.cuda_stream().context().compute_capability();
        let (major, minor) = capability.map_err(|error| refused(&error))?;
        // SAFETY: tensors are used by the thread that made them, and by others only after it has waited for its stream
        // (`upload`, `Vit::new`).
        unsafe { cuda.disable_event_tracking() };
        if let Err(error) = probe(cuda) {
            let needed = COMPUTE_CAP;
            return Err(Missing::Driver(format!(
                "the card (compute capability {major}.{minor}) or its driver cannot run kernels made for {needed} \
                 and CUDA's version of this build: {}",
                error.to_string().lines().next().unwrap_or_default()
            )));
        }
        if let Err(error) = keep_memory(cuda) {
            tracing::debug!("memory is given back to the driver after each step: {error}");
        }
    }
    Ok(device)
}

/// The pool that tensors on a device come from.
fn pool(device: &CudaDevice) -> candle_core::Result<sys::CUmemoryPool> {
    let context = device.cuda_stream().context().clone();
    // SAFETY: the context's own device, which lives as long as the program.
    unsafe { result::device::get_default_mem_pool(context.cu_device()) }.w()
}

/// Lets the pool keep what is freed for the next step. Left to itself it gives everything back to the driver whenever
/// the host waits for the device, and asks for it again.
fn keep_memory(device: &CudaDevice) -> candle_core::Result<()> {
    let mut all = u64::MAX;
    let (pool, attribute) = (pool(device)?, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD);
    // SAFETY: the attribute is a 64-bit number, which is read during the call.
    unsafe { result::mem_pool::set_attribute(pool, attribute, (&raw mut all).cast()) }.w()
}

/// The most bytes that tensors on a GPU took at once, cuBLAS's own memory and the driver's not counted, where the driver
/// tells.
pub fn peak_bytes(device: &Device) -> Option<u64> {
    let Device::Cuda(device) = device else { return None };
    let mut bytes = 0u64;
    let (pool, attribute) = (pool(device).ok()?, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH);
    // SAFETY: the attribute is a 64-bit number, which is written during the call.
    unsafe { result::mem_pool::get_attribute(pool, attribute, (&raw mut bytes).cast()) }.ok()?;
    Some(bytes)
}

/// Begins anew: [`peak_bytes`] is then of what is there from now on.
pub fn forget_peak(device: &Device) {
    let Device::Cuda(device) = device else { return };
    let mut nothing = 0u64;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
    if let Ok(pool) = pool(device) {
        // SAFETY: the attribute is a 64-bit number, which is read during the call; 0 sets it to what is used now.
        let _ = unsafe { result::mem_pool::set_attribute(pool, attribute, (&raw mut nothing).cast()) };
    }
}

/// What the card is called.
pub fn name(device: &Device) -> Option<String> {
    let Device::Cuda(device) = device else { return None };
    device.cuda_stream().context().name().ok()
}

/// See [`super::upload`]. Every thread has a stream of its own, so that a thread that prepares images copies them
/// while another one's kernels run.
pub fn upload(numbers: &[f32], shape: Shape, device: &Device) -> candle_core::Result<Tensor> {
    thread_local! {
        /// Memory that the device reads by itself.
        static STAGING: RefCell<Option<PinnedHostSlice<f32>>> = const { RefCell::new(None) };
    }
    let Device::Cuda(device) = device else { return Tensor::from_slice(numbers, shape, device) };
    if shape.elem_count() != numbers.len() {
        return Err(candle_core::Error::ShapeMismatch { buffer_size: numbers.len(), shape });
    }
    let stream = device.cuda_stream();
    let there = STAGING.with_borrow_mut(|staging| {
        let mut room = match staging.take().filter(|room| room.len() == numbers.len()) {
            Some(room) => room,
            // SAFETY: all of it is written before anything reads it.
            None => unsafe { stream.context().alloc_pinned::<f32>(numbers.len()) }.w()?,
        };
        room.as_mut_slice().w()?.copy_from_slice(numbers);
        let there = stream.clone_htod(&room).w()?;
        stream.synchronize().w()?;
        *staging = Some(room);
        Ok::<_, candle_core::Error>(there)
    })?;
    let storage = CudaStorage { slice: CudaStorageSlice::F32(there), device: device.clone() };
    Ok(Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false))
}
