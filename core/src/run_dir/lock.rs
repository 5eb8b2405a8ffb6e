//! One process at a time writes to a directory.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Write},
    path::Path,
};

use crate::{Error, Result};

/// Takes the lock of a directory, so that no two processes write there. It is given up when the file is closed, which the
/// system does for a process that ends in any way.
///
/// # Errors
/// Another process has it, or the file cannot be made.
pub fn lock(root: &Path) -> Result<File> {
    let path = root.join(".lock");
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = file.map_err(crate::error::io(&path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(held(root, &mut file)),
        // Some network file systems have no locks.
        Err(TryLockError::Error(e)) => {
            tracing::warn!("{} cannot be locked, so two processes could write there: {e}", path.display());
        }
    }
    // Who holds it is for the message above alone.
    let _ = file.set_len(0).and_then(|()| write!(file, "{}", std::process::id()));
    Ok(file)
}

/// Whether another process is writing to the directory, which need not be there.
pub fn is_held(root: &Path) -> bool {
    check_free(root).is_err()
}

/// Refuses a directory that another process is writing to; it need not be there.
///
/// # Errors
/// Who has its lock.
pub(super) fn check_free(root: &Path) -> Result<()> {
    let Ok(mut file) = File::open(root.join(".lock")) else { return Ok(()) };
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(held(root, &mut file)),
        _ => Ok(()),
    }
}

fn held(root: &Path, file: &mut File) -> Error {
    let mut holder = String::new();
    let _ = file.read_to_string(&mut holder);
    let holder = match holder.trim().parse::<u32>() {
        Ok(process) => format!("process {process} is writing to it"),
        Err(_) => "another process is writing to it".into(),
    };
    Error::RunDir { dir: root.into(), reason: format!("{holder}; wait for it or end it") }
}
