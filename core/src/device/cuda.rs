//! Opening a CUDA device without ever panicking: the libraries that candle takes for granted are looked for first.

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

use super::Missing;
use crate::panics;

/// Folders, separated by colons, in which CUDA's libraries are looked for before the system's own.
const FOLDERS: &str = "CDL_CUDA_LIBS";

/// A library under the names that it goes by, and what to say without it.
struct Needed {
    names: &'static [&'static str],
    what: &'static str,
}

const TOOLKIT: &str = "it is part of CUDA; name its folder in CDL_CUDA_LIBS or LD_LIBRARY_PATH";

/// What opening a device and its matrix products need, those that others need before them.
const NEEDED: [Needed; 4] = [
    Needed { names: &["libcuda.so.1", "libcuda.so"], what: "the NVIDIA driver" },
    Needed { names: &["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"], what: TOOLKIT },
    Needed { names: &["libcublas.so.13", "libcublas.so.12", "libcublas.so"], what: TOOLKIT },
    Needed { names: &["libcurand.so.10", "libcurand.so"], what: TOOLKIT },
];

/// The device with this number.
pub fn open(ordinal: usize) -> Result<Device, Missing> {
    static LOADED: OnceLock<Result<Vec<Library>, (usize, String)>> = OnceLock::new();
    let loaded = LOADED.get_or_init(|| {
        let find = |(which, needed): (usize, &Needed)| load(needed).map_err(|reason| (which, reason));
        NEEDED.iter().enumerate().map(find).collect()
    });
    if let Err((which, reason)) = loaded {
        let Needed { names, what } = &NEEDED[*which];
        return Err(Missing::Library { library: names[0], what, reason: reason.clone() });
    }
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

/// Loads a library and keeps it; the bindings then find it by its name.
fn load(needed: &Needed) -> Result<Library, String> {
    let folders = env::var_os(FOLDERS).unwrap_or_default();
    let named = env::split_paths(&folders).filter(|folder| folder != Path::new(""));
    let mut places: Vec<PathBuf> =
        named.flat_map(|folder| needed.names.iter().map(move |name| folder.join(name))).collect();
    places.retain(|place| place.exists());
    places.extend(needed.names.iter().map(PathBuf::from));
    let mut reason = String::new();
    for place in places {
        // SAFETY: NVIDIA's libraries, whose initialisers do nothing that a program may not do at any time; the
        // bindings are about to load the same ones.
        match unsafe { Library::new(&place) } {
            Ok(library) => return Ok(library),
            Err(error) => reason = error.to_string(),
        }
    }
    Err(reason)
}
