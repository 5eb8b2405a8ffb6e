//! Places of results. A place that cannot be used is refused before any work, as an error of the user.

use std::{
    fs,
    io::Read,
    path::{Component, Path, PathBuf},
};

use crate::failure::Failure;

/// Refuses a folder that cannot be made since something that is no folder is in its way; `option` says what it is for.
pub fn folder(option: &str, path: &Path) -> Result<(), Failure> {
    if path.as_os_str().is_empty() {
        return Err(Failure::invalid(format!("{option}: expected a folder, found an empty name")));
    }
    let named = path.ancestors().filter(|part| !part.as_os_str().is_empty());
    match named.into_iter().find(|part| part.symlink_metadata().is_ok()) {
        Some(there) if !there.is_dir() => {
            let (path, there) = (path.display(), there.display());
            Err(Failure::invalid(format!("{option} {path}: expected a folder, and {there} is none")))
        }
        _ => Ok(()),
    }
}

/// Refuses a page that cannot be made since it is a folder, or since its folder cannot be (`option` as of [`folder`]), and an
/// existing file that is no HTML page: a report replaces nothing else.
pub fn page(option: &str, path: &Path) -> Result<(), Failure> {
    const BEGINNING: &[u8] = b"<!doctype html";
    let fail = |what: &str| Err(Failure::invalid(format!("{option} {}: {what}", path.display())));
    if path.is_dir() || path.file_name().is_none() {
        return fail("expected the name of a file, found a folder");
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        folder(option, parent)?;
    }
    let mut beginning = [0; BEGINNING.len()];
    let read = match path.is_file() {
        true => fs::File::open(path).and_then(|mut file| file.read(&mut beginning)).unwrap_or(0),
        false => 0,
    };
    match beginning[..read].eq_ignore_ascii_case(&BEGINNING[..read]) {
        true => Ok(()),
        false => fail("expected a page or a new name, and that file is no page"),
    }
}

/// Resolves `path`, which need not exist, without links and `..`, so that one place has one name.
pub fn resolved(path: &Path) -> PathBuf {
    let mut place = PathBuf::new();
    for part in std::path::absolute(path).unwrap_or_else(|_| path.into()).components() {
        match part {
            // What is before it is no link any more, or will be made as a folder.
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
    fn an_empty_name_is_no_folder() {
        let refused = folder("--tables", "".as_ref());
        assert!(refused.is_err_and(|failure| failure.code == 2 && failure.message.contains("empty name")));
    }

    #[cfg(unix)]
    #[test]
    fn one_place_has_one_name() {
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
