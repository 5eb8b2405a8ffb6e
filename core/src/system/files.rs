//! Reading of files at paths from the user.

use std::{
    fs::{self, File, OpenOptions},
    io::{Error, ErrorKind, Read, Result},
    path::Path,
};

/// Opens a regular file for reading.
///
/// # Errors
/// The file cannot be opened, or is not a regular file. A named pipe would block until a process writes to it, and a
/// device can be endless.
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
    File::open(path)
}

/// Makes opening fail if the file is a symbolic link. A link in a folder from elsewhere may name any file of the user.
pub(crate) fn without_links(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(options, rustix::fs::OFlags::NOFOLLOW.bits() as i32);
    options
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

/// Reads a regular file of UTF-8.
///
/// # Errors
/// Errors of [`open`] and of reading, and bytes that are not UTF-8.
pub fn read_to_string(path: &Path) -> Result<String> {
    let mut text = String::new();
    open(path)?.read_to_string(&mut text)?;
    Ok(text)
}
