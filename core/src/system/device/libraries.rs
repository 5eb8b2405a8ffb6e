//! Loading of the CUDA libraries. Candle panics if one is missing, so all are loaded before candle opens a device.

use std::{error::Error, path::PathBuf};

use libloading::Library;

use crate::system::device::Missing;

const TOOLKIT: &str = "it is part of CUDA; add its folder to CDL_CUDA_LIBS or LD_LIBRARY_PATH";

/// Required libraries in the order of their dependencies: the names of each (the first is used in messages), and a hint
/// for the message if it is missing.
const NEEDED: [(&[&str], &str); 4] = [
    (&["libcuda.so.1", "libcuda.so"], "it is part of the NVIDIA driver"),
    (CUBLAS[0], TOOLKIT),
    (CUBLAS[1], TOOLKIT),
    (&["libcurand.so.10", "libcurand.so"], TOOLKIT),
];

// `CUDARC_CUDA_VERSION` sets the CUDA release of the bindings at build time. They then require libraries of the same
// major version: other versions have different functions under the same names. Without the variable, the build takes
// the release from the CUDA compiler and links its libraries, so that the loader selects the version.
const CUBLAS: [&[&str]; 2] = match RELEASE {
    Some([b'1', b'3', ..]) => [&["libcublasLt.so.13"], &["libcublas.so.13"]],
    Some([b'1', b'2', ..]) => [&["libcublasLt.so.12"], &["libcublas.so.12"]],
    _ => [
        &["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"],
        &["libcublas.so.13", "libcublas.so.12", "libcublas.so"],
    ],
};
const RELEASE: Option<&[u8]> = match option_env!("CUDARC_CUDA_VERSION") {
    Some(release) => Some(release.as_bytes()),
    None => None,
};

/// Loads all libraries. The bindings find them by name as long as they stay loaded.
pub(super) fn load(folders: &[PathBuf]) -> Result<Vec<Library>, Missing> {
    let load_one = |(names, hint): (&[&'static str], &'static str)| {
        first(names, folders).map_err(|reason| Missing::Library { library: names[0], hint, reason })
    };
    NEEDED.into_iter().map(load_one).collect()
}

/// Returns the first library that can be loaded. The error is the loader's message for the first file of these names in
/// `folders`, or else for the first of `names`.
fn first(names: &[&str], folders: &[PathBuf]) -> Result<Library, String> {
    let named = folders.iter().flat_map(|folder| names.iter().map(move |name| folder.join(name)));
    let places = named.filter(|place| place.exists()).chain(names.iter().map(PathBuf::from));
    let mut reason = None;
    for place in places {
        // SAFETY: these are NVIDIA's libraries, whose initialisers may run at any time. The bindings load the same
        // libraries.
        match unsafe { Library::new(&place) } {
            Ok(library) => return Ok(library),
            // The source of the error contains the message of the loader.
            Err(error) => {
                let message = error.source().map_or_else(|| error.to_string(), ToString::to_string);
                reason = reason.or(Some(message));
            }
        }
    }
    Err(reason.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn the_error_names_a_missing_library() {
        let reason = first(&["libno_such_thing.so.7", "libno_such_thing.so"], &[]).unwrap_err();
        assert!(reason.contains("libno_such_thing.so.7"), "{reason}");
    }

    #[test]
    fn the_error_of_a_file_that_is_not_a_library_contains_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("libno_such_thing.so");
        std::fs::write(&file, "no library").unwrap();
        let folders = [folder.path().to_path_buf()];
        let reason = first(&["libno_such_thing.so.7", "libno_such_thing.so"], &folders).unwrap_err();
        assert!(reason.contains(file.to_str().unwrap()), "{reason}");
    }

    /// Skipped on machines with a driver, where other libraries may be missing.
    #[test]
    fn without_a_driver_the_error_names_the_driver() {
        if first(NEEDED[0].0, &[]).is_ok() {
            return;
        }
        let missing = load(&[]).unwrap_err();
        assert!(missing.is_expected());
        let message = missing.to_string();
        assert!(message.starts_with("libcuda.so.1 cannot be loaded ("), "{message}");
        assert!(message.ends_with("): it is part of the NVIDIA driver"), "{message}");
    }
}
