//! Locks: one process at a time writes to a run directory, works on a sweep, or runs a sweep's cell.
//!
//! A lock is a file that the process keeps open. The system gives it up when the process ends in any way.

use std::{
    fmt,
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Write},
    path::Path,
    thread::sleep,
    time::Duration,
};

use crate::error::{Error, Result};

const LOCK: &str = ".lock";
/// Time between two attempts.
const PACE: Duration = Duration::from_millis(50);
/// Attempts before a lock counts as taken: a process that only looks whether it is has it for a moment too.
const ATTEMPTS: usize = 4;

/// Process that has a lock, by its number where it wrote that down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder(Option<u32>);

impl Holder {
    fn read(file: &mut File) -> Self {
        let mut process = String::new();
        let _ = file.read_to_string(&mut process);
        Self(process.trim().parse().ok())
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(process) => write!(f, "process {process}"),
            None => f.write_str("another process"),
        }
    }
}

/// Takes the lock of a directory, so that no two processes write there, for as long as the file is open.
///
/// # Errors
/// Another process has it, or the file cannot be made.
pub fn lock(root: &Path) -> Result<File> {
    lock_file(&root.join(LOCK))?.map_err(|holder| held(root, holder))
}

/// Takes the lock `path` for as long as the file is open, or gives the process that has it.
pub fn lock_file(path: &Path) -> Result<std::result::Result<File, Holder>> {
    lock_after(path, || sleep(PACE))
}

/// Takes the lock; `wait` is called between two attempts.
fn lock_after(path: &Path, mut wait: impl FnMut()) -> Result<std::result::Result<File, Holder>> {
    let mut attempts = 0;
    let mut file = loop {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(path);
        let mut file = file.map_err(crate::error::io(path))?;
        attempts += 1;
        match file.try_lock() {
            Ok(()) => break file,
            Err(TryLockError::WouldBlock) if attempts < ATTEMPTS => wait(),
            Err(TryLockError::WouldBlock) => return Ok(Err(Holder::read(&mut file))),
            // Some network file systems have no locks.
            Err(TryLockError::Error(e)) => {
                tracing::warn!(
                    "{} cannot be locked, so two processes could write there: {e}",
                    path.display()
                );
                break file;
            }
        }
    };
    // For the messages of other processes alone.
    let _ = file.set_len(0).and_then(|()| write!(file, "{}", std::process::id()));
    Ok(Ok(file))
}

/// Whether another process is writing to the directory, which need not exist.
pub fn is_held(root: &Path) -> bool {
    holder(&root.join(LOCK)).is_some()
}

/// Refuses a directory that another process is writing to; it need not exist.
pub(super) fn check_free(root: &Path) -> Result<()> {
    holder(&root.join(LOCK)).map_or(Ok(()), |holder| Err(held(root, holder)))
}

/// Another process that has the lock `path`, which need not exist.
pub fn holder(path: &Path) -> Option<Holder> {
    let mut file = File::open(path).ok()?;
    // A shared lock, since others who look hold nothing, and NFS lets only processes that may write lock a file alone.
    let taken = matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock));
    taken.then(|| Holder::read(&mut file))
}

fn held(root: &Path, holder: Holder) -> Error {
    Error::RunDir { dir: root.into(), reason: format!("{holder} is writing to it; wait for it or end it") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lock as one has it for a moment who only looks.
    fn looker(root: &Path) -> File {
        let file = File::open(root.join(LOCK)).expect("the lock's file");
        file.lock_shared().expect("locked");
        file
    }

    #[test]
    fn who_looks_sees_writers_and_no_others_who_look() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let root = folder.path();
        assert!(!is_held(root), "nobody was ever there");
        let writer = lock(root).expect("free");
        assert!(is_held(root));
        drop(writer);
        let _looker = looker(root);
        assert!(!is_held(root));
    }

    #[test]
    fn a_lock_is_waited_for_while_somebody_looks_and_not_for_ever() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let root = folder.path();
        drop(lock(root).expect("free"));
        let mut looking = Some(looker(root));
        let path = root.join(LOCK);
        let writer =
            lock_after(&path, || drop(looking.take())).expect("a file").expect("free after a moment");
        assert!(looking.is_none());

        let mut waits = 0;
        let holder = lock_after(&path, || waits += 1).expect("a file").expect_err("held");
        assert_eq!(waits, ATTEMPTS - 1);
        let refused = held(root, holder).to_string();
        let words = format!("process {} is writing to it", std::process::id());
        assert!(refused.contains(&words), "{refused}");
        drop(writer);
    }
}
