//! What a cell's process failed with, left beside its log for whoever looks at the sweep later: a process of a job array has
//! no sweep that would see it end.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use cdl_core::run_dir::write_atomic;

use crate::first_line;

fn file(folder: &Path, cell: &str) -> PathBuf {
    folder.join("logs").join(format!("{cell}.failure"))
}

/// Writes the first line of `message` down.
pub fn leave(folder: &Path, cell: &str, message: &str) {
    let line = message.lines().next().unwrap_or_default();
    if let Err(error) = write_atomic(&file(folder, cell), format!("{line}\n").as_bytes()) {
        tracing::warn!("{cell}: that it failed is not written down: {}", first_line(&error));
    }
}

/// What the cell's last process failed with, if it did.
pub fn read(folder: &Path, cell: &str) -> Option<String> {
    let text = fs::read_to_string(file(folder, cell)).ok()?;
    Some(text.trim_end().into())
}

/// Forgets it: a process is at the cell again.
pub fn forget(folder: &Path, cell: &str) {
    let path = file(folder, cell);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            tracing::warn!("{} cannot be removed: {e}", path.display());
        }
        _ => {}
    }
}
