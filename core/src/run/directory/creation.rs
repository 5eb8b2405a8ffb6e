//! Creation of a run directory: checks of its place, and the first files.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{
    config::Config,
    error::{Error, Result, if_there, io},
    run::{
        Checkpoints, RunRecord,
        directory::{CHECKPOINTS, CONFIG, LOG, METRICS, NAMES, RECORD, RunDir, append},
    },
    system::{
        atomic::{is_temporary, write_atomic, write_json},
        hex,
        lock::{LOCK, check_free, lock},
        staging::{Placement, Staging, place_of, recover},
    },
};

/// Contents of `run.json`.
#[derive(Serialize)]
struct RecordFile<'a> {
    #[serde(flatten)]
    record: &'a RunRecord,
    /// SHA-256 of the original `config.toml`.
    config_sha256: String,
}

impl RunDir {
    /// Returns `runs/<config>-seed<seed>-<UTC time>`, with a number appended if this path exists already.
    pub fn default_path(config: &Config) -> PathBuf {
        Self::default_paths(config).find(|path| !path.exists()).unwrap_or_default()
    }

    /// Returns the default path, followed by the same path with the suffixes `-2`, `-3`, ...
    fn default_paths(config: &Config) -> impl Iterator<Item = PathBuf> {
        let time = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S");
        let name = format!("{}-seed{}-{time}", config.name(), config.run.seed);
        let numbered = (2..).map({
            let name = name.clone();
            move |number| format!("{name}-{number}")
        });
        std::iter::once(name).chain(numbered).map(|name| Path::new("runs").join(name))
    }

    /// Creates the directory at its default path, or at the next number if another process creates it first.
    ///
    /// # Errors
    /// Errors of [`RunDir::create`].
    pub fn create_default(config: &Config, record: &RunRecord, needed: u64) -> Result<Self> {
        let mut paths = Self::default_paths(config).filter(|path| !path.exists());
        loop {
            let path = paths.next().unwrap_or_default();
            match Self::try_create(&path, config, record, needed, false) {
                Err(error) if is_taken(&error, &path) => {}
                created => return created.map_err(|error| explain(&path, error)),
            }
        }
    }

    /// Creates the directory with configuration and record. A new directory appears in one step, and an earlier run is
    /// replaced in one step, so that a failure leaves no incomplete directory and does not remove an earlier run. An
    /// existing empty folder is filled; it may be a link or a mount point.
    ///
    /// # Errors
    /// A directory that is not empty, unless it contains a run and `overwrite` is set; missing permission; less free
    /// space than `needed` bytes.
    pub fn create(
        root: &Path,
        config: &Config,
        record: &RunRecord,
        needed: u64,
        overwrite: bool,
    ) -> Result<Self> {
        check_vacant(root, overwrite)?;
        Self::try_create(root, config, record, needed, overwrite).map_err(|error| explain(root, error))
    }

    /// Creates the directory. Its errors do not name the directory yet.
    fn try_create(
        root: &Path,
        config: &Config,
        record: &RunRecord,
        needed: u64,
        overwrite: bool,
    ) -> Result<Self> {
        let place = place_of(root)?;
        // An existing folder stays locked until the new run is in it. Another process may have used it since the check.
        let held = if place.is_dir() { Some(lock(&place)?) } else { None };
        let placement = match check_contents(root, overwrite)? {
            false => Placement::Replace,
            true if held.is_some() => Placement::Fill,
            true => Placement::New,
        };
        let mut staging = Staging::new(&place, placement)?;
        let free = free_bytes(staging.path())?;
        if free < needed {
            let short =
                format!("the run needs {} kB of disk space, {} kB are free", needed / 1000, free / 1000);
            return Err(io(&place)(std::io::Error::new(ErrorKind::StorageFull, short)));
        }
        let toml = config.with_loaded_plugins().to_toml()?;
        write_atomic(&staging.path().join(CONFIG), toml.as_bytes())?;
        let written = RecordFile { record, config_sha256: hex(&Sha256::digest(&toml)) };
        write_json(&staging.path().join(RECORD), &written)?;
        let files = (append(staging.path(), METRICS)?, append(staging.path(), LOG)?);
        // A folder that is filled keeps its lock. The lock of a replaced folder is removed with the folder.
        let lock = staging.take_lock().or(held);
        staging.move_to(&place, RECORD)?;
        let checkpoints = Checkpoints::open(root.join(CHECKPOINTS), &config.run.checkpoint)?;
        Ok(Self::of(root, files, config, toml, checkpoints, lock))
    }
}

/// Returns whether creating a directory failed because another process has created it.
fn is_taken(error: &Error, path: &Path) -> bool {
    match error {
        Error::Io { source, .. } => source.kind() == ErrorKind::DirectoryNotEmpty,
        Error::RunDir { .. } => path.exists(),
        _ => false,
    }
}

/// Adds the directory to an error of its creation.
fn explain(root: &Path, error: Error) -> Error {
    match error {
        refused @ Error::RunDir { .. } => refused,
        taken if is_taken(&taken, root) => occupied(root),
        error => Error::RunDir { dir: root.into(), reason: format!("cannot be written: {error}") },
    }
}

/// Returns the error of a directory that contains a run.
fn occupied(root: &Path) -> Error {
    let reason = match root.join(CHECKPOINTS).exists() {
        true => format!(
            "already exists and contains an unfinished run; resume it with `cdl resume {}`, choose another directory, or \
             add --overwrite",
            root.display()
        ),
        false => "already exists; choose another directory or add --overwrite".into(),
    };
    Error::RunDir { dir: root.into(), reason }
}

/// Checks that a run may be written to a directory. Writes nothing, but restores a directory that a killed process was
/// replacing.
///
/// # Errors
/// A directory that is not empty, unless it contains only a run and `overwrite` is set; a link without a target; a path
/// whose parent is not a folder or is read-only.
pub fn check_vacant(root: &Path, overwrite: bool) -> Result<()> {
    let fail = |reason: String| Error::RunDir { dir: root.into(), reason };
    let place = place_of(root).map_err(|e| fail(format!("cannot be used: {e}")))?;
    recover(&place)?;
    check_contents(root, overwrite)?;
    check_free(root)?;
    let parent = nearest_folder(&place);
    let metadata = fs::metadata(parent).map_err(|e| fail(format!("cannot be written: {e}")))?;
    if metadata.permissions().readonly() {
        return Err(fail(format!("cannot be written: `{}` is read-only", parent.display())));
    }
    Ok(())
}

/// Checks the contents of a directory that a run is to be written to. Returns whether it is missing or empty, apart from
/// the first files of a run whose start was interrupted. The lock distinguishes them from files of the user.
fn check_contents(root: &Path, overwrite: bool) -> Result<bool> {
    let fail = |reason: String| Error::RunDir { dir: root.into(), reason };
    let entries = if_there(fs::read_dir(root)).map_err(|e| fail(format!("cannot be used: {e}")))?;
    let entries = entries.into_iter().flatten().flatten();
    let entries: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into()).collect();
    let is_left = |name: &String| is_temporary(name.as_ref());
    let locked = entries.iter().any(|name| name == LOCK);
    let is_first = |name: &String| locked && [CONFIG, METRICS, LOG, LOCK].contains(&name.as_str());
    if entries.iter().all(|name| is_left(name) || is_first(name)) {
        return Ok(true);
    }
    if !(root.join(CONFIG).exists() && root.join(RECORD).exists()) {
        return Err(fail("already exists and is not a run directory; choose another directory".into()));
    }
    // Checked also without --overwrite, so that the message does not suggest an option that would fail.
    if let Some(other) = entries.iter().filter(|name| !NAMES.contains(&name.as_str()) && !is_left(name)).min()
    {
        return Err(fail(format!(
            "already exists and contains `{other}`, which does not belong to the run and would be lost; move it away or \
             choose another directory"
        )));
    }
    if overwrite { Ok(false) } else { Err(occupied(root)) }
}

/// Returns the free disk space for a run directory in bytes. The directory need not exist.
pub fn free_bytes(root: &Path) -> Result<u64> {
    let folder = nearest_folder(root);
    fs4::available_space(folder).map_err(io(folder))
}

/// Returns `path`, or its nearest ancestor that exists.
fn nearest_folder(path: &Path) -> &Path {
    let existing = path.ancestors().find(|folder| !folder.as_os_str().is_empty() && folder.exists());
    existing.unwrap_or(Path::new("."))
}
