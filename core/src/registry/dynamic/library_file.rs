//! File of a library. It is opened once, so that the inspected library is the one that is loaded.

use std::{
    fs::{self, File, Metadata},
    io::{self, Read},
    path::{Path, PathBuf},
    time::SystemTime,
};

/// Open file of a library that no other user can change.
#[derive(Debug)]
pub(super) struct LibraryFile {
    /// Absolute path, links resolved.
    pub(super) path: PathBuf,
    file: File,
    version: Version,
}

/// Properties that change when a file is replaced or written.
#[derive(Debug, PartialEq, Eq)]
struct Version {
    /// Device and inode; zero where the system has none.
    identity: (u64, u64),
    bytes: u64,
    modified: Option<SystemTime>,
}

impl Version {
    fn of(metadata: &Metadata) -> Self {
        #[cfg(unix)]
        let identity = {
            use std::os::unix::fs::MetadataExt;
            (metadata.dev(), metadata.ino())
        };
        #[cfg(not(unix))]
        let identity = (0, 0);
        Self { identity, bytes: metadata.len(), modified: metadata.modified().ok() }
    }
}

impl LibraryFile {
    /// Opens the file at `path`.
    ///
    /// # Errors
    /// The file cannot be opened, is not a regular file, or can be changed by another user.
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        let unreadable = |e: io::Error| format!("cannot be read: {e}");
        let path = path.canonicalize().map_err(unreadable)?;
        if path.is_dir() {
            return Err("is a folder; expected a shared library made by `cdl plugin build`".into());
        }
        let file = crate::system::files::open(&path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        #[cfg(unix)]
        super::file_access::check(&path, &metadata)?;
        Ok(Self { path, file, version: Version::of(&metadata) })
    }

    /// Reads the whole file.
    pub(super) fn read(&mut self) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        self.file.read_to_end(&mut bytes).map_err(|e| format!("cannot be read: {e}"))?;
        Ok(bytes)
    }

    /// Returns the path for the loader of the system. On Linux, the path refers to the open file, even if another file
    /// has taken its place in the folder.
    pub(super) fn loader_path(&self) -> PathBuf {
        #[cfg(target_os = "linux")]
        {
            let open =
                PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&self.file)));
            if open.exists() {
                return open;
            }
        }
        self.path.clone()
    }

    /// Checks that the file at [`LibraryFile::loader_path`] is the open file, and that the file has not been written
    /// since it was opened.
    pub(super) fn check_unchanged(&self) -> Result<(), String> {
        let now = fs::metadata(self.loader_path()).map(|metadata| Version::of(&metadata));
        match now {
            Ok(now) if now == self.version => Ok(()),
            _ => Err("was changed while it was loaded; run the command again".into()),
        }
    }

    /// Keeps the file open until the process ends. The loader identifies a loaded library by its path, so no other file
    /// may get the same descriptor.
    pub(super) fn keep_open(self) {
        std::mem::forget(self.file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_file_stays_the_one_that_was_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("library.so");
        fs::write(&path, "first").unwrap();
        let mut library = LibraryFile::open(&path).unwrap();
        assert_eq!(library.check_unchanged(), Ok(()));
        // Another file takes its place, as a new build does.
        let other = folder.path().join("other.so");
        fs::write(&other, "second").unwrap();
        fs::rename(&other, &path).unwrap();
        assert_eq!(library.read().unwrap(), b"first");
        if cfg!(target_os = "linux") {
            assert_eq!(fs::read(library.loader_path()).unwrap(), b"first");
            assert_eq!(library.check_unchanged(), Ok(()));
        } else {
            assert!(library.check_unchanged().is_err());
        }

        let library = LibraryFile::open(&path).unwrap();
        fs::write(&path, "written in place").unwrap();
        assert!(library.check_unchanged().is_err_and(|reason| reason.contains("was changed")));
    }
}
