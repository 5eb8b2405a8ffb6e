//! Reading of files at paths from the user.

use std::{
    fs::{self, File, OpenOptions},
    io::{Error, ErrorKind, Read, Result, Seek},
    path::Path,
};

/// Start of the small text file that a Git repository contains in place of a file stored by Git LFS. A clone without
/// `git-lfs`, and a copy of such a clone, have only this file.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Byte order mark of UTF-8, with which some editors begin a text file. It is not part of the text.
const BYTE_ORDER_MARK: &str = "\u{feff}";

/// Opens a regular file for reading.
///
/// # Errors
/// The file cannot be opened, is not a regular file, or is a pointer of Git LFS. A named pipe would block until a
/// process writes to it, and a device can be endless.
pub fn open(path: &Path) -> Result<File> {
    let metadata = fs::metadata(path)?;
    if metadata.is_dir() {
        return Err(Error::from(ErrorKind::IsADirectory));
    }
    if !metadata.is_file() {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "it is not a regular file but a pipe, socket or device",
        ));
    }
    let mut file = File::open(path)?;
    let mut start = Vec::new();
    file.by_ref().take(LFS_POINTER.len() as u64).read_to_end(&mut start)?;
    if start == LFS_POINTER {
        return Err(Error::new(
            ErrorKind::InvalidData,
            "it is a Git LFS pointer, not the file itself; fetch the file with `git lfs pull` in its repository, or \
             download it from the hub",
        ));
    }
    file.rewind()?;
    Ok(file)
}

/// Opens a file of our own in a folder that may come from elsewhere, such as a lock or a log.
///
/// # Errors
/// The file cannot be opened, or is a link, a pipe or a device. A symbolic or hard link may be another file of the user,
/// and opening a pipe may wait forever.
pub fn open_own(options: &mut OpenOptions, path: &Path) -> Result<File> {
    #[cfg(unix)]
    {
        use rustix::fs::OFlags;
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        std::os::unix::fs::OpenOptionsExt::custom_flags(options, flags.bits() as i32);
    }
    let unsuitable = || {
        let remedy = "it is a link, pipe or device; remove it, or replace it by an ordinary file";
        Error::new(ErrorKind::InvalidInput, remedy)
    };
    let file = match options.open(path) {
        Err(_) if path.symlink_metadata().is_ok_and(|metadata| !metadata.is_file()) => {
            return Err(unsuitable());
        }
        opened => opened?,
    };
    let metadata = file.metadata()?;
    #[cfg(unix)]
    let is_linked = std::os::unix::fs::MetadataExt::nlink(&metadata) > 1;
    #[cfg(not(unix))]
    let is_linked = false;
    if !metadata.is_file() || is_linked {
        return Err(unsuitable());
    }
    Ok(file)
}

/// Reads a regular file.
///
/// # Errors
/// Errors of [`open`] and of reading.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads a regular file of UTF-8, without its byte order mark.
///
/// # Errors
/// Errors of [`open`] and of reading, and bytes that are not UTF-8.
pub fn read_to_string(path: &Path) -> Result<String> {
    let mut text = String::new();
    open(path)?.read_to_string(&mut text)?;
    if text.starts_with(BYTE_ORDER_MARK) {
        text.drain(..BYTE_ORDER_MARK.len());
    }
    Ok(text)
}

/// Returns the bytes of a text without its byte order mark.
pub fn without_byte_order_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(BYTE_ORDER_MARK.as_bytes()).unwrap_or(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_order_mark_is_not_part_of_the_text() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("list.txt");
        fs::write(&file, b"\xef\xbb\xbfa/0.png 0\n")?;
        assert_eq!(read_to_string(&file)?, "a/0.png 0\n");
        assert_eq!(without_byte_order_mark(&read(&file)?), b"a/0.png 0\n");
        assert_eq!(without_byte_order_mark(b"\xef\xbba"), b"\xef\xbba");
        Ok(())
    }

    #[test]
    fn pointers_of_git_lfs_are_refused() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("model.safetensors");
        fs::write(&file, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")?;
        for error in [read(&file).err(), read_to_string(&file).err(), open(&file).err()] {
            let said = error.map(|e| e.to_string()).unwrap_or_default();
            assert!(said.contains("Git LFS pointer") && said.contains("`git lfs pull`"), "{said}");
        }
        // Short files, and files that merely begin alike, are read whole.
        for text in ["", "v", "version https://git-lfs.github.com"] {
            fs::write(&file, text)?;
            assert_eq!(read_to_string(&file)?, text);
        }
        Ok(())
    }
}
