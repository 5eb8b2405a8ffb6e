//! The directory of one run: configuration, record, results and models, each file written whole or not at all.
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

use serde::{Deserialize, Serialize};

use crate::{
    Accuracies, Config, EpochReport, Error, Result, Role, RunRecord, StateDict, Summary, Task, Trainer,
};

/// What `results.json` holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// The student's accuracies in percent.
    pub student: Option<Summary>,
    /// The teacher's, `null` if it was not trained.
    pub teacher: Option<Summary>,
    /// Tasks finished and tasks in all.
    pub tasks_done: usize,
    /// Number of tasks of the stream.
    pub tasks: usize,
    /// Seconds since the run began.
    pub wall_seconds: f64,
}

/// A run directory that is open for writing.
#[derive(Debug)]
pub struct RunDir {
    root: PathBuf,
    metrics: File,
}

impl RunDir {
    /// `runs/<config>-seed<seed>-<UTC time>`.
    pub fn default_path(config: &Config) -> PathBuf {
        let stem = config.file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let time = jiff::Zoned::now().with_time_zone(jiff::tz::TimeZone::UTC).strftime("%Y%m%d-%H%M%S");
        Path::new("runs").join(format!("{stem}-seed{}-{time}", config.run.seed))
    }

    /// Makes the directory and writes what is known before the first step.
    ///
    /// # Errors
    /// A directory that exists and is not empty, unless `overwrite`; no permission or no space, with nothing left
    /// behind.
    pub fn create(root: &Path, config: &Config, record: &RunRecord, overwrite: bool) -> Result<Self> {
        let fail = |reason: String| Error::RunDir { dir: root.into(), reason };
        let occupied = match fs::read_dir(root) {
            Ok(mut entries) => entries.next().is_some(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
            Err(e) => return Err(fail(format!("cannot be used: {e}"))),
        };
        if occupied && !overwrite {
            return Err(fail("already exists; choose another or add --overwrite".into()));
        }
        let is_run = root.join("config.toml").exists() && root.join("run.json").exists();
        if occupied && !is_run {
            return Err(fail("holds something that is not a run; --overwrite only replaces runs".into()));
        }
        let existed = root.exists();
        let open = || -> Result<Self> {
            if occupied {
                clear(root)?;
            }
            fs::create_dir_all(root).map_err(crate::error::io(root))?;
            write_atomic(&root.join("config.toml"), config.to_toml()?.as_bytes())?;
            write_atomic(&root.join("run.json"), &json(record)?)?;
            let path = root.join("metrics.jsonl");
            let metrics =
                OpenOptions::new().create(true).append(true).open(&path).map_err(crate::error::io(&path))?;
            Ok(Self { root: root.into(), metrics })
        };
        open().map_err(|e| {
            if !existed {
                // Best effort: the directory that could not be filled should not stay behind.
                let _ = fs::remove_dir_all(root);
            }
            fail(format!("cannot be written: {e}"))
        })
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
        wall_seconds: f64,
    ) -> Result<Results> {
        let models = model_dir(&self.root, task.index);
        fs::create_dir_all(&models).map_err(crate::error::io(&models))?;
        for role in [Role::Teacher, Role::Student] {
            if role == Role::Student || trainer.settings.train_teacher {
                write_atomic(&model_file(&models, role), &trainer.state(role)?.to_bytes()?)?;
            }
        }
        let results = Results {
            student: accuracies.student.summary(),
            teacher: accuracies.teacher.summary(),
            tasks_done: task.index + 1,
            tasks: task.count,
            wall_seconds,
        };
        write_atomic(&self.root.join("accuracy_student.csv"), accuracies.student.to_csv().as_bytes())?;
        if results.teacher.is_some() {
            write_atomic(&self.root.join("accuracy_teacher.csv"), accuracies.teacher.to_csv().as_bytes())?;
        }
        write_atomic(&self.root.join("results.json"), &json(&results)?)?;
        Ok(results)
    }
}

/// Reads `results.json` of a run.
pub fn read_results(root: &Path) -> Result<Results> {
    let fail = |reason: String| Error::RunDir { dir: root.into(), reason };
    let bytes = fs::read(root.join("results.json"))
        .map_err(|e| fail(format!("results.json cannot be read ({e}); has the run finished a task?")))?;
    serde_json::from_slice(&bytes).map_err(|e| fail(format!("results.json: {e}")))
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

/// Removes what an earlier run left, and nothing else.
fn clear(root: &Path) -> Result<()> {
    let models = root.join("models");
    if models.is_dir() {
        fs::remove_dir_all(&models).map_err(crate::error::io(&models))?;
    }
    let files = [
        "config.toml",
        "run.json",
        "metrics.jsonl",
        "results.json",
        "accuracy_student.csv",
        "accuracy_teacher.csv",
        "log.txt",
    ];
    for name in files {
        let path = root.join(name);
        if path.exists() {
            fs::remove_file(&path).map_err(crate::error::io(&path))?;
        }
    }
    Ok(())
}

fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(|e| Error::State { owner: "results".into(), reason: e.to_string() })?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Temporary file in the same folder, flushed to disk, then renamed: readers see the old file or the new one.
fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let write = || -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
        }
        file.persist(path).map_err(|e| e.error)?;
        Ok(())
    };
    write().map_err(crate::error::io(path))
}
