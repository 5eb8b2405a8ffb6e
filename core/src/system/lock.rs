//! Locks, so that only one process at a time writes to a run directory, works on a sweep, or runs a cell of a sweep.
//!
//! A lock is a file that the process keeps open. The system releases it when the process ends in any way.

use std::{
    fmt,
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Write},
    path::Path,
    thread::sleep,
    time::Duration,
};

use crate::{
    error::{Error, Result},
    system::files,
};

/// Name of the lock file in a folder that a process writes to.
pub(crate) const LOCK: &str = ".lock";
/// Time between two attempts.
const INTERVAL: Duration = Duration::from_millis(50);
/// Attempts before a lock counts as held by a writer. A process that only tests a lock also holds it briefly.
const ATTEMPTS: usize = 4;

/// Process that holds a lock, with its id if the lock file contains it.
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

/// Locks a directory against writing by other processes, as long as the returned file is open.
///
/// # Errors
/// Another process holds the lock, or the file cannot be created.
pub fn lock(root: &Path) -> Result<File> {
    lock_file(&root.join(LOCK))?.map_err(|holder| held(root, holder))
}

/// Acquires the lock `path`, as long as the returned file is open, or returns the process that holds it.
pub fn lock_file(path: &Path) -> Result<std::result::Result<File, Holder>> {
    lock_with_retries(path, || sleep(INTERVAL))
}

/// Acquires the lock. Calls `wait` between two attempts.
fn lock_with_retries(path: &Path, mut wait: impl FnMut()) -> Result<std::result::Result<File, Holder>> {
    let mut attempts = 0;
    let mut file = loop {
        let mut options = OpenOptions::new();
        let file = files::open_own(options.read(true).write(true).create(true).truncate(false), path);
        let mut file = file.map_err(crate::error::io(path))?;
        attempts += 1;
        match file.try_lock() {
            Ok(()) => break file,
            Err(TryLockError::WouldBlock) if attempts < ATTEMPTS => wait(),
            Err(TryLockError::WouldBlock) => return Ok(Err(Holder::read(&mut file))),
            // Some network file systems do not support locks.
            Err(TryLockError::Error(e)) => {
                tracing::warn!(
                    "cannot lock {}; make sure that no other process writes there: {e}",
                    path.display()
                );
                break file;
            }
        }
    };
    // The process id is only used in messages of other processes.
    let _ = file.set_len(0).and_then(|()| write!(file, "{}", std::process::id()));
    Ok(Ok(file))
}

/// Returns whether another process is writing to the directory, which need not exist.
pub fn is_held(root: &Path) -> bool {
    holder(&root.join(LOCK)).is_some()
}

/// Checks that no other process is writing to a directory, which need not exist.
pub(crate) fn check_free(root: &Path) -> Result<()> {
    holder(&root.join(LOCK)).map_or(Ok(()), |holder| Err(held(root, holder)))
}

/// Returns the other process that holds the lock `path`. The lock file need not exist.
pub fn holder(path: &Path) -> Option<Holder> {
    let mut file = files::open_own(OpenOptions::new().read(true), path).ok()?;
    // A shared lock: several processes may test the lock at the same time, and NFS allows exclusive locks only with
    // write access.
    let taken = matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock));
    taken.then(|| Holder::read(&mut file))
}

fn held(root: &Path, holder: Holder) -> Error {
    Error::RunDir {
        dir: root.into(),
        reason: format!("{holder} is writing to it; wait until the process ends, or stop the process"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Acquires a shared lock, like a process that only tests the lock.
    fn shared_lock(root: &Path) -> File {
        let file = File::open(root.join(LOCK)).expect("the lock's file");
        file.lock_shared().expect("locked");
        file
    }

    #[test]
    fn is_held_reports_writers_but_not_shared_locks() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let root = folder.path();
        assert!(!is_held(root), "the lock was never held");
        let writer = lock(root).expect("free");
        assert!(is_held(root));
        drop(writer);
        let _shared = shared_lock(root);
        assert!(!is_held(root));
    }

    #[test]
    fn locking_waits_for_shared_locks_but_not_forever() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let root = folder.path();
        drop(lock(root).expect("free"));
        let mut shared = Some(shared_lock(root));
        let path = root.join(LOCK);
        let writer =
            lock_with_retries(&path, || drop(shared.take())).expect("a file").expect("free after a moment");
        assert!(shared.is_none());

        let mut waits = 0;
        let holder = lock_with_retries(&path, || waits += 1).expect("a file").expect_err("held");
        assert_eq!(waits, ATTEMPTS - 1);
        let refused = held(root, holder).to_string();
        let words = format!("process {} is writing to it", std::process::id());
        assert!(refused.contains(&words), "{refused}");
        drop(writer);
    }
}
