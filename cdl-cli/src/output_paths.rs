//! Checks of output paths. A path that cannot be written is an error before any work starts.

use std::{
    fs,
    io::Read,
    path::{Component, Path, PathBuf},
};

use crate::failure::Failure;

/// Checks that a folder can be created: the nearest existing ancestor must be a folder. Errors name `option`.
pub fn folder(option: &str, path: &Path) -> Result<(), Failure> {
    if path.as_os_str().is_empty() {
        return Err(Failure::invalid(format!("{option}: expected a folder, found an empty name")));
    }
    let named = path.ancestors().filter(|part| !part.as_os_str().is_empty());
    match named.into_iter().find(|part| part.symlink_metadata().is_ok()) {
        Some(existing) if !existing.is_dir() => {
            let (path, existing) = (path.display(), existing.display());
            Err(Failure::invalid(format!(
                "{option} {path}: expected a folder, but {existing} is not a folder"
            )))
        }
        _ => Ok(()),
    }
}

/// Checks that a page can be written: its folder can be created (see [`folder`]), and the path is new or an existing
/// HTML page. No other file is replaced.
pub fn page(option: &str, path: &Path) -> Result<(), Failure> {
    const DOCTYPE: &[u8] = b"<!doctype html";
    let fail = |reason: &str| Err(Failure::invalid(format!("{option} {}: {reason}", path.display())));
    if path.is_dir() || path.file_name().is_none() {
        return fail("expected a file name, found a folder");
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        folder(option, parent)?;
    }
    let mut beginning = [0; DOCTYPE.len()];
    let read = match path.is_file() {
        true => fs::File::open(path).and_then(|mut file| file.read(&mut beginning)).unwrap_or(0),
        false => 0,
    };
    match beginning[..read].eq_ignore_ascii_case(&DOCTYPE[..read]) {
        true => Ok(()),
        false => fail("expected a new file or an existing HTML page; this file is not an HTML page"),
    }
}

/// Resolves links and `..` in `path`, which need not exist, so that equal locations compare as equal.
pub fn resolved(path: &Path) -> PathBuf {
    let mut place = PathBuf::new();
    for part in std::path::absolute(path).unwrap_or_else(|_| path.into()).components() {
        match part {
            // Links before `..` are resolved already; parts that do not exist will be created as folders.
            Component::ParentDir => {
                place.pop();
            }
            part => place.push(part),
        }
        place = fs::canonicalize(&place).unwrap_or(place);
    }
    place
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_names_are_refused() {
        let result = folder("--tables", "".as_ref());
        assert!(result.is_err_and(|failure| failure.code == 2 && failure.message.contains("empty name")));
    }

    #[cfg(unix)]
    #[test]
    fn equal_locations_resolve_to_equal_paths() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let root = fs::canonicalize(folder.path()).expect("folder");
        fs::create_dir_all(root.join("deep/er")).expect("folder");
        std::os::unix::fs::symlink("deep/er", root.join("link")).expect("link");
        for (path, place) in [
            ("new", "new"),
            ("new/../x", "x"),
            ("new/../link/x", "deep/er/x"),
            ("link", "deep/er"),
            ("link/../x", "deep/x"),
            ("link/new/../../x", "deep/x"),
            ("./deep//er/.", "deep/er"),
        ] {
            assert_eq!(resolved(&folder.path().join(path)), root.join(place), "{path}");
        }
    }
}
