//! The directory of one run: configuration, record, results and models, each written whole or not at all; only the
//! epoch lines and the log grow as the run goes on.
//!
//! ```text
//! config.toml               resolved configuration; running it repeats the run
//! run.json                  versions, weights with SHA-256, normalisation, split, device
//! metrics.jsonl             one line for every epoch
//! results.json              accuracy matrices and what follows from them, rewritten after every task
//! accuracy_student.csv      A[i][j], likewise accuracy_teacher.csv
//! models/task_N/            student.safetensors and teacher.safetensors after task N
//! log.txt                   everything that was logged
//! ```

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    Accuracies, Config, EpochReport, Error, Result, Role, RunRecord, Skipped, StateDict, Summary, Task,
    Trainer,
};

/// What `results.json` holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// The student's accuracies in percent, `null` if it was not trained.
    pub student: Option<Summary>,
    /// The teacher's, `null` if it was not trained.
    pub teacher: Option<Summary>,
    /// Tasks finished and tasks in all.
    pub tasks_done: usize,
    /// Number of tasks of the stream.
    pub tasks: usize,
    /// Seconds since the run began.
    pub wall_seconds: f64,
    /// The most memory that was resident at once, where the system tells.
    #[serde(default)]
    pub peak_memory_bytes: Option<u64>,
    /// Images left out because they could not be read (`stream.input.on_error = "skip"`).
    #[serde(default)]
    pub skipped_images: Skipped,
}

/// A run directory that is open for writing.
#[derive(Debug)]
pub struct RunDir {
    root: PathBuf,
    metrics: File,
    log: Option<File>,
}

impl RunDir {
    /// `runs/<config>-seed<seed>-<UTC time>`, with a number after it if that is there already.
    pub fn default_path(config: &Config) -> PathBuf {
        let time = jiff::Zoned::now().with_time_zone(jiff::tz::TimeZone::UTC).strftime("%Y%m%d-%H%M%S");
        let name = format!("{}-seed{}-{time}", config.name(), config.run.seed);
        let numbered = (2..).map(|number| format!("{name}-{number}"));
        let mut paths =
            std::iter::once(name.clone()).chain(numbered).map(|name| Path::new("runs").join(name));
        paths.find(|path| !path.exists()).unwrap_or_default()
    }

    /// Makes the directory with what is known before the first step. It is made whole beside its place and then moved
    /// there, so that nothing half-made is left behind, and an earlier run is replaced only by a run that could be
    /// written.
    ///
    /// # Errors
    /// A directory that is not empty, unless it holds a run and `overwrite` is set; no permission, or less space than
    /// the `needed` bytes.
    pub fn create(
        root: &Path,
        config: &Config,
        record: &RunRecord,
        needed: u64,
        overwrite: bool,
    ) -> Result<Self> {
        vacant(root, overwrite)?;
        let fail = |reason: String| Error::RunDir { dir: root.into(), reason };
        Self::place(root, config, record, needed).map_err(|e| fail(format!("cannot be written: {e}")))
    }

    fn place(root: &Path, config: &Config, record: &RunRecord, needed: u64) -> Result<Self> {
        let parent = root.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(crate::error::io(parent))?;
        let free = fs4::available_space(parent).map_err(crate::error::io(parent))?;
        if free < needed {
            let short = format!("the run needs {} kB, {} kB are free", needed / 1000, free / 1000);
            return Err(crate::error::io(parent)(std::io::Error::new(
                std::io::ErrorKind::StorageFull,
                short,
            )));
        }
        let fresh = beside(parent)?;
        write_atomic(&fresh.path().join("config.toml"), config.to_toml()?.as_bytes())?;
        write_atomic(&fresh.path().join("run.json"), &json(record)?)?;
        let append = |name: &str| {
            let path = fresh.path().join(name);
            OpenOptions::new().create(true).append(true).open(&path).map_err(crate::error::io(&path))
        };
        let (metrics, log) = (append("metrics.jsonl")?, append("log.txt")?);
        let earlier = match root.exists() {
            false => None,
            true => {
                let earlier = beside(parent)?;
                fs::rename(root, earlier.path().join("run")).map_err(crate::error::io(root))?;
                Some(earlier)
            }
        };
        if let Err(e) = fs::rename(fresh.path(), root) {
            if let Some(earlier) = &earlier {
                fs::rename(earlier.path().join("run"), root).map_err(crate::error::io(root))?;
            }
            return Err(crate::error::io(root)(e));
        }
        // It lies in its place now and must not be removed with its old name.
        let _ = fresh.keep();
        Ok(Self { root: root.into(), metrics, log: Some(log) })
    }

    /// The run's log, `log.txt`; the first caller gets it.
    pub fn take_log(&mut self) -> Option<File> {
        self.log.take()
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Adds a line to `metrics.jsonl`.
    pub fn epoch(&mut self, report: &EpochReport) -> Result<()> {
        let path = self.root.join("metrics.jsonl");
        let mut line = serde_json::to_vec(report)
            .map_err(|e| Error::RunDir { dir: self.root.clone(), reason: e.to_string() })?;
        line.push(b'\n');
        self.metrics.write_all(&line).map_err(crate::error::io(path))
    }

    /// Writes models and results after a task.
    pub fn task(
        &mut self,
        task: &Task,
        trainer: &Trainer,
        accuracies: &Accuracies,
        skipped_images: Skipped,
        wall_seconds: f64,
    ) -> Result<Results> {
        let models = model_dir(&self.root, task.index);
        fs::create_dir_all(&models).map_err(crate::error::io(&models))?;
        for &role in &trainer.settings.roles {
            write_atomic(&model_file(&models, role), &trainer.state(role)?.to_bytes()?)?;
        }
        let results = Results {
            student: accuracies.student.summary(),
            teacher: accuracies.teacher.summary(),
            tasks_done: task.index + 1,
            tasks: task.count,
            wall_seconds,
            peak_memory_bytes: crate::memory::peak_bytes(),
            skipped_images,
        };
        for &role in &trainer.settings.roles {
            let file = self.root.join(format!("accuracy_{}.csv", role.as_str()));
            write_atomic(&file, accuracies.of(role).to_csv().as_bytes())?;
        }
        write_atomic(&self.root.join("results.json"), &json(&results)?)?;
        Ok(results)
    }
}

/// Refuses a directory that a run may not be written to, as far as can be seen without writing.
///
/// # Errors
/// A directory that is not empty, unless it holds a run and `overwrite` is set; a place below something that is no
/// folder, or that is read-only.
pub fn vacant(root: &Path, overwrite: bool) -> Result<()> {
    let fail = |reason: String| Error::RunDir { dir: root.into(), reason };
    let occupied = match fs::read_dir(root) {
        Ok(mut entries) => entries.next().is_some(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
        Err(e) => return Err(fail(format!("cannot be used: {e}"))),
    };
    if occupied && !overwrite {
        return Err(fail("already exists; choose another or add --overwrite".into()));
    }
    if occupied && !(root.join("config.toml").exists() && root.join("run.json").exists()) {
        return Err(fail("holds something that is not a run; --overwrite only replaces runs".into()));
    }
    let parent = nearest_folder(root.parent().unwrap_or(root));
    let metadata = fs::metadata(parent).map_err(|e| fail(format!("cannot be written: {e}")))?;
    if metadata.permissions().readonly() {
        return Err(fail(format!("cannot be written: `{}` is read-only", parent.display())));
    }
    Ok(())
}

/// Bytes that are free for a run directory, which need not be there yet.
///
/// # Errors
/// A file system that does not tell.
pub fn free_bytes(root: &Path) -> Result<u64> {
    let folder = nearest_folder(root);
    fs4::available_space(folder).map_err(crate::error::io(folder))
}

/// `path`, or the nearest folder above it that is there.
fn nearest_folder(path: &Path) -> &Path {
    let there = path.ancestors().find(|folder| !folder.as_os_str().is_empty() && folder.exists());
    there.unwrap_or(Path::new("."))
}

/// Reads `results.json` of a run.
pub fn read_results(root: &Path) -> Result<Results> {
    read_json(root, "results.json", "has the run finished a task?")
}

/// Refuses an experiment whose data or weights are not those that the run in `root` was made with.
pub fn check_same(root: &Path, record: &RunRecord) -> Result<()> {
    let recorded: serde_json::Value = read_json(root, "run.json", "is it a run?")?;
    let now = serde_json::to_value(record)
        .map_err(|e| Error::RunDir { dir: root.into(), reason: e.to_string() })?;
    for (what, field) in [
        ("images and tasks", "/split_sha256"),
        ("the plugins", "/plugins"),
        ("the teacher's weights", "/teacher/provenance/sha256"),
        ("the student's weights", "/student/provenance/sha256"),
    ] {
        if recorded.pointer(field) != now.pointer(field) {
            let reason = format!("{what} are not those of the run (SHA-256 in run.json differs)");
            return Err(Error::RunDir { dir: root.into(), reason });
        }
    }
    Ok(())
}

fn read_json<T: DeserializeOwned>(root: &Path, name: &str, hint: &str) -> Result<T> {
    let fail = |reason: String| Error::RunDir { dir: root.into(), reason };
    let bytes =
        fs::read(root.join(name)).map_err(|e| fail(format!("{name} cannot be read ({e}); {hint}")))?;
    serde_json::from_slice(&bytes).map_err(|e| fail(format!("{name}: {e}")))
}

/// Reads the model of `role` after task `task` (from 0).
pub fn read_model(root: &Path, task: usize, role: Role, device: &candle_core::Device) -> Result<StateDict> {
    StateDict::read(&model_file(&model_dir(root, task), role), device)
}

fn model_dir(root: &Path, task: usize) -> PathBuf {
    root.join("models").join(format!("task_{}", task + 1))
}

fn model_file(models: &Path, role: Role) -> PathBuf {
    models.join(format!("{}.safetensors", role.as_str()))
}

/// A directory for a moment in `parent`, with the permissions of any new one.
pub(crate) fn beside(parent: &Path) -> Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".cdl-");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    builder.tempdir_in(parent).map_err(crate::error::io(parent))
}

fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(|e| Error::State { owner: "results".into(), reason: e.to_string() })?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Writes a file by way of a temporary one in the same folder, flushed to disk, then renamed: readers see the old file or
/// the new one.
///
/// # Errors
/// A place that cannot be written.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let write = || -> std::io::Result<()> {
        let mut builder = tempfile::Builder::new();
        // As for any new file: the process's umask applies.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let mut file = builder.tempfile_in(folder)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)?;
        Ok(())
    };
    write().map_err(crate::error::io(path))
}
