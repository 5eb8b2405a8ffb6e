//! Output folders that appear, are filled or are replaced when they are complete.

use std::{
    fs::{self, File, OpenOptions},
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

use tempfile::TempDir;

use crate::{
    error::{Error, Result, if_there, io},
    system::{
        atomic::{folder_of, is_temporary, remove_unfinished, sync_folder, temporary_folder},
        files,
        lock::{LOCK, lock},
    },
};

/// Prefix of the name of a folder that is being replaced by another.
const ASIDE: &str = ".cdl-earlier-";

/// Returns the path of an output folder: the absolute path without links if `root` exists, otherwise `root`.
///
/// # Errors
/// A link whose target does not exist.
pub(crate) fn place_of(root: &Path) -> Result<PathBuf> {
    match fs::canonicalize(root) {
        Ok(place) => Ok(place),
        Err(error) if root.symlink_metadata().is_ok() => Err(io(root)(error)),
        Err(_) => Ok(root.to_owned()),
    }
}

/// Way of moving a complete folder from its temporary path to its final path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placement {
    /// The folder is new and appears in one step.
    New,
    /// An existing empty folder, which may be a mount point, is filled file by file.
    Fill,
    /// Old and new folder are exchanged, in one step where the system can do that.
    Replace,
}

impl Placement {
    /// Returns the placement of a folder at `place`, which is empty or missing unless it is to be replaced.
    pub(crate) fn of(place: &Path, replace: bool) -> Self {
        match (replace, place.is_dir()) {
            (true, _) => Self::Replace,
            (false, true) => Self::Fill,
            (false, false) => Self::New,
        }
    }
}

/// Temporary folder for the contents of an output folder.
pub(crate) struct Staging {
    folder: TempDir,
    placement: Placement,
    /// Lock of the temporary folder. Other processes remove a temporary folder whose lock is free.
    lock: Option<File>,
}

impl Staging {
    /// Creates the folder on the same file system as `place`: in `place` if that folder is to be filled, else beside it.
    /// Removes what killed processes left there.
    pub(crate) fn new(place: &Path, placement: Placement) -> Result<Self> {
        if placement == Placement::Fill {
            remove_unfinished(place)?;
            return Ok(Self { folder: temporary_folder(place)?, placement, lock: None });
        }
        let parent = folder_of(place);
        fs::create_dir_all(parent).map_err(io(parent))?;
        remove_abandoned(parent)?;
        let folder = temporary_folder(parent)?;
        let lock = Some(lock(folder.path())?);
        Ok(Self { folder, placement, lock })
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the lock, which then stays in the folder. `None` for a folder to be filled.
    pub(crate) fn take_lock(&mut self) -> Option<File> {
        self.lock.take()
    }

    /// Moves the complete contents to `place`. `last` is the file that marks the contents as complete.
    /// [`Placement::Fill`] moves this file last.
    ///
    /// # Errors
    /// A new folder that another process has created meanwhile; a folder to be replaced that is a mount point or the
    /// working directory; a folder that cannot be written.
    pub(crate) fn move_to(self, place: &Path, last: &str) -> Result<()> {
        let path = self.folder.path();
        if self.lock.is_some() {
            fs::remove_file(path.join(LOCK)).map_err(io(path))?;
        }
        match self.placement {
            Placement::New => {
                fs::rename(path, place).map_err(io(place))?;
                // The folder has been moved, so the temporary path must not be removed.
                let _ = self.folder.keep();
            }
            Placement::Fill => fill_folder(path, place, last)?,
            Placement::Replace => replace_folder(path, place)?,
        }
        sync_folder(folder_of(place))
    }
}

fn fill_folder(staging: &Path, place: &Path, last: &str) -> Result<()> {
    let mut names = Vec::new();
    for entry in fs::read_dir(staging).map_err(io(staging))? {
        names.push(entry.map_err(io(staging))?.file_name());
    }
    names.sort_by_key(|name| name == last);
    for name in names {
        fs::rename(staging.join(&name), place.join(&name)).map_err(io(place.join(name)))?;
    }
    sync_folder(place)
}

/// Exchanges the folders `staging` and `place`. The caller then removes the old folder, which is at the temporary path
/// `staging`.
fn replace_folder(staging: &Path, place: &Path) -> Result<()> {
    let refuse = |what: &str| Error::Io {
        file: place.to_owned(),
        source: std::io::Error::other(format!(
            "it is {what}, which cannot be replaced in one step; empty it first, or choose another folder"
        )),
    };
    if std::env::current_dir().is_ok_and(|folder| folder == place) {
        return Err(refuse("the working directory"));
    }
    match exchange(staging, place) {
        Err(error)
            if error.kind() == ErrorKind::ResourceBusy || error.kind() == ErrorKind::CrossesDevices =>
        {
            Err(refuse("a mount point"))
        }
        // The file system or the system cannot exchange folders.
        Err(error) if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::InvalidInput) => {
            replace_by_two_moves(staging, place)
        }
        exchanged => exchanged.map_err(io(place)),
    }
}

#[cfg(unix)]
fn exchange(staging: &Path, place: &Path) -> std::io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, staging, CWD, place, RenameFlags::EXCHANGE)?)
}

#[cfg(not(unix))]
fn exchange(_: &Path, _: &Path) -> std::io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}

/// Moves the folder at `place` aside, then `staging` to `place`. After a kill in between, [`recover`] moves the folder back.
fn replace_by_two_moves(staging: &Path, place: &Path) -> Result<()> {
    let aside = moved_aside(place);
    fs::rename(place, &aside).map_err(io(place))?;
    if let Err(error) = fs::rename(staging, place) {
        fs::rename(&aside, place).map_err(io(aside))?;
        return Err(io(place)(error));
    }
    fs::rename(&aside, staging).map_err(io(aside))
}

/// Returns the path to which a folder is moved while another folder takes its place.
fn moved_aside(place: &Path) -> PathBuf {
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    folder_of(place).join(format!("{ASIDE}{name}"))
}

/// Moves the folder of `place` back, if a process was killed while it replaced the folder.
pub(crate) fn recover(place: &Path) -> Result<()> {
    let aside = moved_aside(place);
    if place.symlink_metadata().is_ok() || !is_folder(&aside) {
        return Ok(());
    }
    fs::rename(&aside, place).map_err(io(place))?;
    tracing::warn!("{}: restored after a process was killed while it replaced the folder", place.display());
    Ok(())
}

/// Removes the temporary folders that killed processes left in `folder`. A folder is ours if its name is one that
/// [`temporary_folder`] gives or that of a replaced folder, and if it has a lock file. It is in use while the lock is held;
/// a new one may not be locked yet. A folder that cannot be removed stays.
fn remove_abandoned(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(io(folder))? {
        let path = entry.map_err(io(folder))?.path();
        let name = path.file_name().unwrap_or_default();
        let is_ours = match name.to_string_lossy().strip_prefix(ASIDE) {
            // Without the other folder, this is the only copy.
            Some(replaced) => folder.join(replaced).exists(),
            None => is_temporary(name),
        };
        if !is_ours || !is_folder(&path) {
            continue;
        }
        let modified = path.metadata().and_then(|metadata| metadata.modified()).ok();
        let age = modified.and_then(|time| time.elapsed().ok()).unwrap_or_default();
        let lock = files::open_own(OpenOptions::new().read(true), &path.join(LOCK));
        let abandoned = age > Duration::from_secs(60) && lock.is_ok_and(|lock| lock.try_lock().is_ok());
        // Another process may be removing the same folder.
        if abandoned && let Err(error) = if_there(fs::remove_dir_all(&path)) {
            tracing::warn!("{}, left by a killed process, cannot be removed: {error}", path.display());
        }
    }
    Ok(())
}

/// Returns whether a path is a folder and not a link to one.
fn is_folder(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_with(parent: &Path, name: &str, contents: &str) -> PathBuf {
        let folder = parent.join(name);
        fs::create_dir_all(&folder).expect("folder");
        fs::write(folder.join("file"), contents).expect("file");
        folder
    }

    /// Sets the time of the last change of a folder to `minutes` ago.
    fn age(folder: &Path, minutes: u64) {
        let time = std::time::SystemTime::now() - Duration::from_secs(60 * minutes);
        fs::File::open(folder).and_then(|folder| folder.set_modified(time)).expect("time set");
    }

    fn contents(folder: &Path) -> String {
        fs::read_to_string(folder.join("file")).expect("file")
    }

    #[test]
    fn a_folder_is_replaced_in_one_step_or_in_two() {
        for replace in [replace_folder, replace_by_two_moves] {
            let parent = tempfile::tempdir().expect("temporary folder");
            let place = folder_with(parent.path(), "place", "old");
            let staging = folder_with(parent.path(), ".cdl-new", "new");
            replace(&staging, &place).expect("replaced");
            assert_eq!((contents(&place), contents(&staging)), ("new".into(), "old".into()));
        }
    }

    #[test]
    fn a_temporary_folder_is_locked_and_the_lock_stays_only_if_it_is_taken() {
        let parent = tempfile::tempdir().expect("temporary folder");
        for (name, taken) in [("run", true), ("exported", false)] {
            let place = parent.path().join(name);
            let mut staging = Staging::new(&place, Placement::New).expect("folder");
            age(staging.path(), 2);
            // Another process that starts now does not remove the folder.
            remove_abandoned(parent.path()).expect("cleared");
            fs::write(staging.path().join("file"), name).expect("file");
            let lock = if taken { staging.take_lock() } else { None };
            staging.move_to(&place, "file").expect("moved");
            assert_eq!((contents(&place), place.join(LOCK).exists()), (name.to_string(), taken));
            assert_eq!(lock.is_some(), taken);
        }
        assert_eq!(fs::read_dir(parent.path()).expect("folder").count(), 2);
    }

    #[test]
    fn a_folder_moved_aside_is_restored_and_not_removed() {
        let parent = tempfile::tempdir().expect("temporary folder");
        let place = folder_with(parent.path(), "place", "old");
        // The state after a kill between the two moves.
        fs::rename(&place, moved_aside(&place)).expect("moved");
        fs::write(moved_aside(&place).join(LOCK), "").expect("lock");
        age(&moved_aside(&place), 2);
        remove_abandoned(parent.path()).expect("cleared");
        recover(&place).expect("restored");
        assert_eq!(contents(&place), "old");
        assert!(!moved_aside(&place).exists());
    }

    #[test]
    fn only_abandoned_folders_are_removed() {
        let parent = tempfile::tempdir().expect("temporary folder");
        // Six random characters follow the prefix in the names of temporary folders.
        let [used, left, new, unlocked, other, notes] =
            ["aaaaa1", "aaaaa2", "aaaaa3", "aaaaa4", "aaaaa5", "notes"]
                .map(|name| folder_with(parent.path(), &format!(".cdl-{name}"), name));
        let moved = parent.path().join("other");
        fs::rename(&other, &moved).expect("renamed");
        let locks = [&used, &left, &new, &moved, &notes]
            .map(|folder| fs::File::create(folder.join(LOCK)).expect("lock"));
        locks[0].lock().expect("locked");
        for folder in [&used, &left, &unlocked, &moved, &notes] {
            age(folder, 2);
        }
        remove_abandoned(parent.path()).expect("cleared");
        let exist = [&used, &left, &new, &unlocked, &moved, &notes].map(|folder| folder.exists());
        assert_eq!(exist, [true, false, true, true, true, true]);
    }
}
