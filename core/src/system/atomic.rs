//! Atomic writing of files, and flushing of folders to disk.

use std::{
    ffi::OsStr,
    fs::{self, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

use rayon::prelude::*;
use serde::Serialize;
use tempfile::TempDir;
use walkdir::WalkDir;

use crate::error::{Error, Result, io};

/// Prefix of the names of temporary files and folders. A killed process may leave some behind.
pub(crate) const UNFINISHED: &str = ".cdl-";
/// Number of random letters and digits that follow the prefix.
const RANDOM: usize = 6;

/// Writes a file atomically: a temporary file in the same folder is flushed to disk and then renamed. Readers see the
/// old contents or the new contents, also after a power failure.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = folder_of(path);
    let write = || -> std::io::Result<()> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(UNFINISHED).rand_bytes(RANDOM);
        // The permissions of any new file, subject to the umask of the process.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let mut file = builder.tempfile_in(folder)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)?;
        // The rename is on disk only after the folder has been flushed.
        #[cfg(unix)]
        fs::File::open(folder)?.sync_all()?;
        Ok(())
    };
    write().map_err(io(path))
}

/// Writes `value` atomically as indented JSON with a trailing line feed.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|error| io(path)(error.into()))?;
    bytes.push(b'\n');
    write_atomic(path, &bytes)
}

/// Returns whether a name is one that [`write_atomic`] or [`temporary_folder`] gives. Others that begin alike are the
/// user's.
pub(crate) fn is_temporary(name: &OsStr) -> bool {
    let random = name.to_str().and_then(|name| name.strip_prefix(UNFINISHED));
    random.is_some_and(|random| {
        random.len() == RANDOM && random.bytes().all(|byte| byte.is_ascii_alphanumeric())
    })
}

/// Returns the folder that contains `path`: `.` for a bare name, since an empty path cannot be opened.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Creates a temporary folder in `parent`, with the permissions of any new folder.
pub(crate) fn temporary_folder(parent: &Path) -> Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(UNFINISHED).rand_bytes(RANDOM);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    builder.tempdir_in(parent).map_err(io(parent))
}

/// Flushes the entries of a folder to disk.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    #[cfg(unix)]
    fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(io(folder))?;
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

/// Converts the error of a walk through `root` to an error with the path of the unreadable file or folder.
pub(crate) fn walk_error(root: &Path) -> impl Fn(walkdir::Error) -> Error {
    move |error| io(error.path().unwrap_or(root).to_path_buf())(error.into())
}

/// Flushes a folder and its contents to disk. Links are not followed.
pub(crate) fn sync_below(root: &Path) -> Result<()> {
    let (mut folders, mut files) = (Vec::new(), Vec::new());
    for entry in WalkDir::new(root) {
        let entry = entry.map_err(walk_error(root))?;
        match entry.file_type() {
            kind if kind.is_dir() => folders.push(entry.into_path()),
            kind if kind.is_file() => files.push(entry.into_path()),
            _ => {}
        }
    }
    // Windows flushes only files opened for writing. On other systems, files and folders may be read-only.
    let options = OpenOptions::new().read(true).write(cfg!(windows)).clone();
    let sync = |path: PathBuf| options.open(&path).and_then(|file| file.sync_all()).map_err(io(path));
    files.into_par_iter().try_for_each(sync)?;
    #[cfg(unix)]
    folders.into_par_iter().try_for_each(sync)?;
    Ok(())
}

/// Removes the temporary files and folders that a killed process left in `folder` and its subfolders. No other process
/// may be writing there.
pub(crate) fn remove_unfinished(folder: &Path) -> Result<()> {
    let mut entries = WalkDir::new(folder).min_depth(1).into_iter();
    while let Some(entry) = entries.next() {
        let entry = entry.map_err(walk_error(folder))?;
        if !is_temporary(entry.file_name()) {
            continue;
        }
        match entry.file_type().is_dir() {
            true => {
                entries.skip_current_dir();
                fs::remove_dir_all(entry.path())
            }
            false => fs::remove_file(entry.path()),
        }
        .map_err(io(entry.path()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_of_a_bare_name_is_the_working_directory() {
        for (path, folder) in [("both.html", "."), ("runs/both.html", "runs"), ("/both.html", "/")] {
            assert_eq!(folder_of(path.as_ref()), Path::new(folder), "{path}");
        }
    }
}
