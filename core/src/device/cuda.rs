//! Opening a CUDA device without ever panicking: the libraries that candle takes for granted are looked for first.

use std::{
    env,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use candle_core::Device;
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
    match panics::catch(|| Device::new_cuda(ordinal)) {
        Ok(device) => device.map_err(|error| refused(error.to_string())),
        Err(panic) => Err(refused(panic)),
    }
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
