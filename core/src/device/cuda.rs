//! CUDA devices: opening one without ever panicking, what it keeps, and how images get there.

use std::{
    cell::RefCell,
    env,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use candle_core::{
    CudaDevice, CudaStorage, Device, Shape, Storage, Tensor,
    cuda_backend::{
        CudaStorageSlice, WrapErr,
        cudarc::driver::{PinnedHostSlice, result, sys},
    },
    op::BackpropOp,
};
use libloading::Library;

use super::{Missing, libraries};
use crate::panics;

/// Folders that are looked into for CUDA's libraries before the system's own: those that `CDL_CUDA_LIBS` names,
/// separated by colons.
fn folders() -> Vec<PathBuf> {
    let named = env::var_os("CDL_CUDA_LIBS").unwrap_or_default();
    env::split_paths(&named).filter(|folder| folder != Path::new("")).collect()
}

/// The device with this number.
pub fn open(ordinal: usize) -> Result<Device, Missing> {
    static LOADED: OnceLock<Result<Vec<Library>, Missing>> = OnceLock::new();
    LOADED.get_or_init(|| libraries::load(&folders())).as_ref().map_err(Missing::clone)?;
    // Whatever else is missing, candle's bindings answer with a panic.
    let refused = |message: String| Missing::Driver(message.lines().next().unwrap_or_default().into());
    let device = match panics::catch(|| Device::new_cuda(ordinal)) {
        Ok(device) => device.map_err(|error| refused(error.to_string()))?,
        Err(panic) => return Err(refused(panic)),
    };
    if let Device::Cuda(device) = &device {
        keep_memory(device).map_err(|error| refused(error.to_string()))?;
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

/// See [`super::peak_bytes`].
pub fn peak_bytes(device: &Device) -> Option<u64> {
    let Device::Cuda(device) = device else { return None };
    let mut bytes = 0u64;
    let (pool, attribute) = (pool(device).ok()?, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH);
    // SAFETY: the attribute is a 64-bit number, which is written during the call.
    unsafe { result::mem_pool::get_attribute(pool, attribute, (&raw mut bytes).cast()) }.ok()?;
    Some(bytes)
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
