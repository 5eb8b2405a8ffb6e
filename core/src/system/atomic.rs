//! Files that are written whole or not at all.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

use rayon::prelude::*;
use serde::Serialize;
use tempfile::TempDir;
use walkdir::WalkDir;

use crate::error::{Error, Result, io};

/// What names of files and folders on their way begin with. A process that is killed may leave some behind.
pub(crate) const UNFINISHED: &str = ".cdl-";

/// Temporary file in the same folder, flushed to disk, then renamed: readers see the old file or the new one, also
/// after the machine has lost power.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = folder_of(path);
    let write = || -> std::io::Result<()> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(UNFINISHED);
        // As for any new file: the process's umask applies.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let mut file = builder.tempfile_in(folder)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)?;
        // The new name is on disk once the folder is.
        #[cfg(unix)]
        fs::File::open(folder)?.sync_all()?;
        Ok(())
    };
    write().map_err(io(path))
}

/// Writes `value` as indented JSON with a line feed at its end, as [`write_atomic`] does.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|error| io(path)(error.into()))?;
    bytes.push(b'\n');
    write_atomic(path, &bytes)
}

/// The folder of what `path` names: a bare name is in the working directory, which no empty name opens.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A directory for a moment in `parent`, with the permissions of any new one.
pub(crate) fn beside(parent: &Path) -> Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(UNFINISHED);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    builder.tempdir_in(parent).map_err(io(parent))
}

/// Moves a folder that is whole to its place `root`. With `replace`, the folder that is there is put aside first, put
/// back where the move fails, and removed where it does not.
///
/// # Errors
/// A place that is not empty, or that cannot be written.
pub(crate) fn settle(fresh: TempDir, root: &Path, replace: bool) -> Result<()> {
    let parent = folder_of(root);
    let earlier = if replace { Some(beside(parent)?) } else { None };
    if let Some(earlier) = &earlier {
        fs::rename(root, earlier.path().join("earlier")).map_err(io(root))?;
    }
    if let Err(e) = fs::rename(fresh.path(), root) {
        if let Some(earlier) = earlier
            && let Err(error) = fs::rename(earlier.path().join("earlier"), root)
        {
            // Somebody else's folder is in its place: it stays where it was put aside, which the error names.
            return Err(io(earlier.keep().join("earlier"))(error));
        }
        return Err(io(root)(e));
    }
    // It lies in its place now and must not be removed with its old name.
    let _ = fresh.keep();
    Ok(())
}

/// Error of a walk through `root` that names the file or folder which cannot be read.
pub(crate) fn unwalked(root: &Path) -> impl Fn(walkdir::Error) -> Error {
    move |error| io(error.path().unwrap_or(root).to_path_buf())(error.into())
}

/// Sees to it that a folder with all that is in it is on disk, before it is moved to its place. Links are not followed.
pub(crate) fn sync_below(root: &Path) -> Result<()> {
    let (mut folders, mut files) = (Vec::new(), Vec::new());
    for entry in WalkDir::new(root) {
        let entry = entry.map_err(unwalked(root))?;
        match entry.file_type() {
            kind if kind.is_dir() => folders.push(entry.into_path()),
            kind if kind.is_file() => files.push(entry.into_path()),
            _ => {}
        }
    }
    // Windows syncs only what was opened to be written; elsewhere files and folders may be read-only.
    let options = OpenOptions::new().read(true).write(cfg!(windows)).clone();
    let sync = |path: PathBuf| options.open(&path).and_then(|file| file.sync_all()).map_err(io(path));
    files.into_par_iter().try_for_each(sync)?;
    #[cfg(unix)]
    folders.into_par_iter().try_for_each(sync)?;
    Ok(())
}

/// Removes what a killed process left unfinished in `folder` and the folders in it. Nobody else may be writing there.
pub(crate) fn remove_unfinished(folder: &Path) -> Result<()> {
    for entry in WalkDir::new(folder) {
        let entry = entry.map_err(unwalked(folder))?;
        if !entry.file_type().is_dir() && entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            fs::remove_file(entry.path()).map_err(io(entry.path()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_a_bare_name_can_be_opened() {
        for (path, folder) in [("both.html", "."), ("runs/both.html", "runs"), ("/both.html", "/")] {
            assert_eq!(folder_of(path.as_ref()), Path::new(folder), "{path}");
        }
    }
}
