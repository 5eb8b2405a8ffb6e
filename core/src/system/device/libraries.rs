//! CUDA's libraries, which candle takes for granted: where they are missing it panics, so they are looked for first.

use std::{error::Error, path::PathBuf};

use libloading::Library;

use crate::system::device::Missing;

const TOOLKIT: &str = "it is part of CUDA; name its folder in CDL_CUDA_LIBS or LD_LIBRARY_PATH";

/// Libraries that opening a device and its matrix products need, those first that others need: the names that each may have,
/// the first of which is said, and what to say without it.
const NEEDED: [(&[&str], &str); 4] = [
    (&["libcuda.so.1", "libcuda.so"], "the NVIDIA driver"),
    (CUBLAS[0], TOOLKIT),
    (CUBLAS[1], TOOLKIT),
    (&["libcurand.so.10", "libcurand.so"], TOOLKIT),
];

// Bindings of a named release take libraries of its major version: another one has other functions under the same names.
// A build that asked the compiler for the release has linked its libraries, and the loader has chosen them already.
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

/// Loads all of them; as long as they are kept, the bindings find them by name.
pub(super) fn load(folders: &[PathBuf]) -> Result<Vec<Library>, Missing> {
    let one = |(names, what): (&[&'static str], &'static str)| {
        first(names, folders).map_err(|reason| Missing::Library { library: names[0], what, reason })
    };
    NEEDED.into_iter().map(one).collect()
}

/// The first library that loads; otherwise what was wrong with that in `folders`, or with the first of `names`.
fn first(names: &[&str], folders: &[PathBuf]) -> Result<Library, String> {
    let named = folders.iter().flat_map(|folder| names.iter().map(move |name| folder.join(name)));
    let places = named.filter(|place| place.exists()).chain(names.iter().map(PathBuf::from));
    let mut reason = None;
    for place in places {
        // SAFETY: NVIDIA's libraries, whose initialisers do nothing that a program may not do at any time; the
        // bindings are about to load the same ones.
        match unsafe { Library::new(&place) } {
            Ok(library) => return Ok(library),
            // What the loader said is the error's source.
            Err(error) => {
                let said = error.source().map_or_else(|| error.to_string(), ToString::to_string);
                reason = reason.or(Some(said));
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
    fn a_library_that_is_nowhere_is_named() {
        let reason = first(&["libno_such_thing.so.7", "libno_such_thing.so"], &[]).unwrap_err();
        assert!(reason.contains("libno_such_thing.so.7"), "{reason}");
    }

    #[test]
    fn a_file_that_is_no_library_is_named_with_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("libno_such_thing.so");
        std::fs::write(&file, "no library").unwrap();
        let folders = [folder.path().to_path_buf()];
        let reason = first(&["libno_such_thing.so.7", "libno_such_thing.so"], &folders).unwrap_err();
        assert!(reason.contains(file.to_str().unwrap()), "{reason}");
    }

    /// With a driver the rest may still be missing; without one, that is what is said.
    #[test]
    fn without_a_driver_the_driver_is_what_is_missing() {
        if first(NEEDED[0].0, &[]).is_ok() {
            return;
        }
        let missing = load(&[]).unwrap_err();
        assert!(missing.is_ordinary());
        let sentence = missing.to_string();
        assert!(sentence.starts_with("libcuda.so.1 cannot be loaded ("), "{sentence}");
        assert!(sentence.ends_with("): the NVIDIA driver"), "{sentence}");
    }
}
