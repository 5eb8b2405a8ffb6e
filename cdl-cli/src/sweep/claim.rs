//! Which process is at a cell: one at a time, whether a sweep has started it, a job array or a hand.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{Read, Write},
    path::{Path, PathBuf},
    thread::sleep,
};

use cdl_core::{
    Error,
    run_dir::{self, LOOKS, PACE},
};

use super::plan::run_folder;
use crate::{BUSY, Failure};

/// Stands after the number of a process that ends when its sweep does.
const LEASHED: &str = " leashed";

fn file(folder: &Path, cell: &str) -> PathBuf {
    folder.join("logs").join(format!("{cell}.lock"))
}

/// Takes a cell for as long as the file is open. A process of a sweep that was killed, which saves its run and ends, is
/// waited for; any other keeps the cell. `leashed`: this one is of a sweep too, which has the folder.
pub fn take(folder: &Path, cell: &str, leashed: bool) -> Result<File, Failure> {
    let path = file(folder, cell);
    let root = run_folder(folder, cell);
    let (mut looks, mut told) = (0, false);
    loop {
        let mut file = open(&path)?;
        let holder = match file.try_lock() {
            Ok(()) if run_dir::is_held(&root) => {
                Holder { name: format!("a process that writes to {}", root.display()), leashed: false }
            }
            Ok(()) => {
                // Who has it is for other processes to decide whether they wait.
                let mark = if leashed { LEASHED } else { "" };
                let _ = file.set_len(0).and_then(|()| write!(file, "{}{mark}", std::process::id()));
                return Ok(file);
            }
            Err(TryLockError::WouldBlock) => Holder::read(&mut file),
            // Some network file systems have no locks.
            Err(TryLockError::Error(e)) => {
                tracing::warn!("{} cannot be locked, so two processes could run {cell}: {e}", path.display());
                return Ok(file);
            }
        };
        let orphan = holder.leashed && (leashed || !run_dir::is_held(folder));
        if orphan && !told {
            tracing::warn!("{} saves {cell}: waiting for its end", holder.name);
            told = true;
        }
        looks += usize::from(!orphan);
        if looks == LOOKS {
            let message = format!("{cell} is run by {}; nothing of it was changed", holder.name);
            return Err(Failure { message, code: BUSY });
        }
        sleep(PACE);
    }
}

/// The process that has a cell.
struct Holder {
    name: String,
    leashed: bool,
}

impl Holder {
    fn read(file: &mut File) -> Self {
        let mut text = String::new();
        let _ = file.read_to_string(&mut text);
        let name = match text.trim_end_matches(LEASHED).parse::<u32>() {
            Ok(process) => format!("process {process}"),
            Err(_) => "another process".into(),
        };
        Self { name, leashed: text.ends_with(LEASHED) }
    }
}

fn open(path: &Path) -> Result<File, Failure> {
    let made = path.parent().map_or(Ok(()), fs::create_dir_all);
    let file =
        made.and_then(|()| OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path));
    Ok(file.map_err(|source| Error::Io { file: path.into(), source })?)
}

/// Whether a process is at the cell.
pub fn is_held(folder: &Path, cell: &str) -> bool {
    run_dir::held_file(&file(folder, cell)).is_some() || run_dir::is_held(&run_folder(folder, cell))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_looks_sees_a_process_at_the_cell_and_no_others_who_look() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let (folder, cell) = (folder.path(), "seed-1");
        assert!(!is_held(folder, cell), "nobody was ever there");
        let taken = take(folder, cell, false).map_err(|e| e.message).expect("free");
        assert!(is_held(folder, cell));
        drop(taken);
        let looker = File::open(file(folder, cell)).expect("the lock's file");
        looker.lock_shared().expect("locked");
        assert!(!is_held(folder, cell));
    }
}
