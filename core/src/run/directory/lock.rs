//! One process at a time writes to a directory.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Write},
    path::Path,
    thread::sleep,
    time::Duration,
};

use crate::error::{Error, Result};

/// How long is waited between two looks at a lock that is taken.
pub const PACE: Duration = Duration::from_millis(50);
/// A lock that looks taken is looked at as often: who only looks whether it is has it for a moment too.
pub const LOOKS: usize = 4;

/// Takes the lock of a directory, so that no two processes write there. It is given up when the file is closed, which the
/// system does for a process that ends in any way.
///
/// # Errors
/// Another process has it, or the file cannot be made.
pub fn lock(root: &Path) -> Result<File> {
    lock_after(root, || sleep(PACE))
}

/// Takes the lock; `wait` is what is done between two looks.
fn lock_after(root: &Path, mut wait: impl FnMut()) -> Result<File> {
    let path = root.join(".lock");
    let mut looks = 0;
    let mut file = loop {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = file.map_err(crate::error::io(&path))?;
        looks += 1;
        match file.try_lock() {
            Ok(()) => break file,
            Err(TryLockError::WouldBlock) if looks < LOOKS => wait(),
            Err(TryLockError::WouldBlock) => return Err(held(root, &mut file)),
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
    // Who holds it is for the message above alone.
    let _ = file.set_len(0).and_then(|()| write!(file, "{}", std::process::id()));
    Ok(file)
}

/// Whether another process is writing to the directory, which need not be there.
pub fn is_held(root: &Path) -> bool {
    held_file(&root.join(".lock")).is_some()
}

/// Refuses a directory that another process is writing to; it need not be there.
///
/// # Errors
/// Who has its lock.
pub(super) fn check_free(root: &Path) -> Result<()> {
    held_file(&root.join(".lock")).map_or(Ok(()), |mut file| Err(held(root, &mut file)))
}

/// A file, which need not be there, if another process has locked it for itself.
pub fn held_file(path: &Path) -> Option<File> {
    let file = File::open(path).ok()?;
    // Not alone: others who look hold nothing, and NFS lets only them lock a file alone who may write to it.
    let locked = matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock));
    locked.then_some(file)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The lock as one has it for a moment who only looks.
    fn looker(root: &Path) -> File {
        let file = File::open(root.join(".lock")).expect("the lock's file");
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
        let writer = lock_after(root, || drop(looking.take())).expect("free after a moment");
        assert!(looking.is_none());

        let mut waits = 0;
        let refused = lock_after(root, || waits += 1).expect_err("held");
        assert_eq!(waits, LOOKS - 1);
        let holder = format!("process {} is writing to it", std::process::id());
        assert!(refused.to_string().contains(&holder), "{refused}");
        drop(writer);
    }
}
