//! Run directory: configuration, record, results and models. Each file is written atomically; only the epoch lines and
//! the log are appended to.
//!
//! ```text
//! config.toml               resolved configuration; running it repeats the run
//! run.json                  versions, weights with SHA-256, normalisation, split, device
//! metrics.jsonl             one line for every epoch
//! results.json              accuracy matrices and derived metrics, rewritten after every task
//! accuracy_student.csv      accuracy in % after each task (row) on each task (column); also accuracy_teacher.csv
//! confusion_student.csv     test images by true and predicted class after the last task; also confusion_teacher.csv
//! models/task_N/            student.safetensors, teacher.safetensors and prompt_use.json after task N, with SHA256SUMS
//! tensorboard/              event files, if `record.tensorboard` is set; written by the program `cdl`
//! checkpoints/              the newest checkpoints, until the run is finished
//! log.txt                   log of the run
//! report.html               output of `cdl report`
//! .lock                     lock of the process that writes here
//! ```

mod creation;
mod read;
mod results;

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    path::{Path, PathBuf},
    time::Instant,
};

use sha2::{Digest, Sha256};
use walkdir::WalkDir;

use crate::{
    config::Config,
    error::{Error, Result, io},
    hub::checksum_list::{self, ChecksumList},
    run::{Checkpoint, Checkpoints},
    system::{
        atomic::{remove_unfinished, sync_folder, walk_error, write_atomic, write_json},
        files, hex,
        lock::{LOCK, lock},
        staging::{place_of, recover},
    },
    train::{Accuracies, EpochReport, Evaluation, Snapshot, Trainer},
    traits::{ByRole, Role, Skipped, Task},
};

pub use self::{
    creation::{check_vacant, free_bytes},
    read::{
        check_same, read_confusion, read_epochs, read_model, read_prompt_use, read_record, read_results,
        read_results_so_far,
    },
    results::Results,
};

const CONFIG: &str = "config.toml";
const RECORD: &str = "run.json";
const METRICS: &str = "metrics.jsonl";
const RESULTS: &str = "results.json";
const CHECKPOINTS: &str = "checkpoints";
const LOG: &str = "log.txt";
const MODELS: &str = "models";
const PROMPT_USE: &str = "prompt_use.json";

/// Names of all files and folders of a run directory.
const NAMES: [&str; 14] = [
    CONFIG,
    RECORD,
    METRICS,
    RESULTS,
    "accuracy_student.csv",
    "accuracy_teacher.csv",
    "confusion_student.csv",
    "confusion_teacher.csv",
    MODELS,
    "tensorboard",
    CHECKPOINTS,
    LOG,
    "report.html",
    LOCK,
];

/// Run directory that is open for writing.
#[derive(Debug)]
pub struct RunDir {
    root: PathBuf,
    metrics: File,
    /// SHA-256 of the contents of `metrics.jsonl` so far.
    metrics_sha256: Sha256,
    log: Option<File>,
    /// Original configuration of the run in TOML.
    config: String,
    checkpoints: Checkpoints,
    /// Number of tasks after which the run stops.
    max_tasks: usize,
    /// Lock, which is held as long as the file is open.
    _lock: Option<File>,
}

impl RunDir {
    fn of(
        root: &Path,
        (metrics, log): (File, File),
        config: &Config,
        toml: String,
        checkpoints: Checkpoints,
        lock: Option<File>,
    ) -> Self {
        let max_tasks = config.run.max_tasks().unwrap_or(usize::MAX);
        Self {
            root: root.into(),
            metrics,
            metrics_sha256: Sha256::new(),
            log: Some(log),
            config: toml,
            checkpoints,
            max_tasks,
            _lock: lock,
        }
    }

    /// Opens the directory of a run to resume it with `config`. Returns the newest valid checkpoint, if there is one,
    /// and the original configuration of the run.
    ///
    /// # Errors
    /// A directory that is not a run, that another process is writing to, or that cannot be written.
    pub fn open(root: &Path, config: &Config) -> Result<(Self, Option<Checkpoint>, Config)> {
        recover(&place_of(root).unwrap_or_else(|_| root.into()))?;
        // The record is read first, so that nothing is written to a directory that is not a run.
        let record = read_record(root)?;
        refuse_links(root)?;
        let lock = lock(root)?;
        remove_unfinished(root)?;
        let mut checkpoints = Checkpoints::open(root.join(CHECKPOINTS), &config.run.checkpoint)?;
        let newest = checkpoints.newest()?;
        let (origin, toml) = match &newest {
            Some((checkpoint, file)) => (file.clone(), checkpoint.meta.config.clone()),
            None => {
                let file = root.join(CONFIG);
                let toml = crate::system::files::read_to_string(&file).map_err(io(&file))?;
                let (original, now) = (record["config_sha256"].as_str(), hex(&Sha256::digest(&toml)));
                if original.is_some_and(|original| original != now) {
                    let reason = "config.toml was changed after the start of the run (its SHA-256 is not that in \
                                  run.json), and no checkpoint contains the original; start a new run";
                    return Err(Error::RunDir { dir: root.into(), reason: reason.into() });
                }
                (file, toml)
            }
        };
        let original = Config::recorded(&origin, &toml)?;
        let files = (append(root, METRICS)?, append(root, LOG)?);
        let checkpoint = newest.map(|(checkpoint, _)| checkpoint);
        Ok((Self::of(root, files, config, toml, checkpoints, Some(lock)), checkpoint, original))
    }

    /// Truncates `metrics.jsonl` to its first `bytes` bytes. The resumed run writes the removed lines again.
    ///
    /// # Errors
    /// A file that is shorter, whose first `bytes` bytes do not have the SHA-256 `expected`, or that cannot be changed.
    /// Checkpoints of earlier versions contain no SHA-256.
    pub fn truncate_metrics(&mut self, bytes: u64, expected: Option<&str>) -> Result<()> {
        let path = self.root.join(METRICS);
        let fail = |reason: String| Error::RunDir { dir: self.root.clone(), reason };
        let length = self.metrics.metadata().map_err(io(&path))?.len();
        if length < bytes {
            return Err(fail(format!(
                "metrics.jsonl has {length} bytes, but had {bytes} when the checkpoint was written; restore the file, \
                 or start a new run"
            )));
        }
        let mut kept = Vec::new();
        files::open(&path).and_then(|file| file.take(bytes).read_to_end(&mut kept)).map_err(io(&path))?;
        let found = Sha256::new_with_prefix(&kept);
        if let Some(expected) = expected {
            let found = hex(&found.clone().finalize());
            if found != expected {
                return Err(fail(format!(
                    "metrics.jsonl was changed after the checkpoint was written: its first {bytes} bytes have the SHA-256 \
                     {found}, expected {expected}; restore the file, or start a new run"
                )));
            }
        }
        self.metrics_sha256 = found;
        self.metrics.set_len(bytes).map_err(io(path))
    }

    /// Returns whether checkpoints are written.
    pub fn writes_checkpoints(&self) -> bool {
        self.checkpoints.enabled()
    }

    /// Writes a checkpoint if one is due or `now` is set, and removes the checkpoints that it replaces. `wall_seconds`
    /// is the duration of the run so far.
    ///
    /// # Errors
    /// A folder without space or permission to write. Earlier checkpoints are kept.
    pub fn write_checkpoint(&mut self, snapshot: &Snapshot<'_>, now: bool, wall_seconds: f64) -> Result<()> {
        if !self.checkpoints.enabled() || !(now || self.checkpoints.due(snapshot.state.position)) {
            return Ok(());
        }
        let start = Instant::now();
        let metrics = self.sync_metrics()?;
        let metrics = (metrics, hex(&self.metrics_sha256.clone().finalize()));
        let checkpoint = Checkpoint::of(snapshot, &self.config, metrics, wall_seconds)?;
        let file = self.checkpoints.save(&checkpoint)?;
        tracing::debug!("{} written in {:.1} ms", file.display(), start.elapsed().as_secs_f64() * 1e3);
        Ok(())
    }

    /// Removes the checkpoints of a finished run.
    pub fn finish(&mut self) -> Result<()> {
        self.checkpoints.clear()
    }

    /// Flushes the epoch lines to disk and returns their length in bytes.
    fn sync_metrics(&self) -> Result<u64> {
        let length = self.metrics.sync_data().and_then(|()| Ok(self.metrics.metadata()?.len()));
        length.map_err(io(self.root.join(METRICS)))
    }

    /// Returns the open file `log.txt` in the first call, `None` in later calls.
    pub fn take_log(&mut self) -> Option<File> {
        self.log.take()
    }

    /// Returns the path of the directory.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Appends a line to `metrics.jsonl`.
    pub fn append_epoch(&mut self, report: &EpochReport) -> Result<()> {
        let path = self.root.join(METRICS);
        let mut line = serde_json::to_vec(report)
            .map_err(|e| Error::RunDir { dir: self.root.clone(), reason: e.to_string() })?;
        line.push(b'\n');
        self.metrics.write_all(&line).map_err(io(path))?;
        self.metrics_sha256.update(&line);
        Ok(())
    }

    /// Writes models and results after a task. Returns the contents of `results.json`.
    pub fn write_task(
        &mut self,
        task: &Task,
        trainer: &Trainer,
        accuracies: &Accuracies,
        evaluation: &Evaluation,
        skipped_images: Skipped,
        wall_seconds: f64,
    ) -> Result<Results> {
        self.sync_metrics()?;
        let models = model_dir(&self.root, task.index);
        fs::create_dir_all(&models).map_err(io(&models))?;
        let (mut class_accuracy, mut cost) = (ByRole::default(), ByRole::default());
        for &role in &trainer.settings.roles {
            write_atomic(&model_file(&models, role), &trainer.state(role)?.to_bytes()?)?;
            let accuracy = accuracies.of(role).to_csv();
            write_atomic(&role_file(&self.root, "accuracy", role), accuracy.as_bytes())?;
            match trainer.cost(role) {
                Ok(value) => *cost.of_mut(role) = Some(value),
                Err(error) => tracing::warn!("cannot record the cost of the {}: {error}", role.as_str()),
            }
        }
        for (role, confusion) in &evaluation.confusions {
            *class_accuracy.of_mut(*role) = Some(confusion.class_accuracy());
            write_atomic(&role_file(&self.root, "confusion", *role), &confusion.to_csv()?)?;
        }
        let results = Results {
            format: Results::FORMAT,
            student: accuracies.student.summary(&evaluation.test_images),
            teacher: accuracies.teacher.summary(&evaluation.test_images),
            test_images: evaluation.test_images.clone(),
            class_accuracy,
            prompt_use: evaluation.prompt_use.clone(),
            cost,
            tasks_done: task.index + 1,
            tasks: task.count.min(self.max_tasks),
            wall_seconds,
            peak_memory_bytes: crate::system::memory::peak_bytes(),
            skipped_images,
        };
        write_json(&models.join(PROMPT_USE), &evaluation.prompt_use)?;
        let checksums = ChecksumList::of(&models, &|| ())?;
        checksums.write(&models.join(checksum_list::NAME))?;
        // The new folders are on disk before the results mark the task as finished, and before checkpoints are removed.
        sync_folder(&self.root.join(MODELS))?;
        sync_folder(&self.root)?;
        write_json(&self.root.join(RESULTS), &results)?;
        Ok(results)
    }
}

/// Returns the CSV file `what` (`accuracy` or `confusion`) of one network.
fn role_file(root: &Path, what: &str, role: Role) -> PathBuf {
    root.join(format!("{what}_{}.csv", role.as_str()))
}

fn model_dir(root: &Path, task: usize) -> PathBuf {
    root.join(MODELS).join(format!("task_{}", task + 1))
}

fn model_file(models: &Path, role: Role) -> PathBuf {
    models.join(format!("{}.safetensors", role.as_str()))
}

fn append(root: &Path, name: &str) -> Result<File> {
    let path = root.join(name);
    files::open_own(OpenOptions::new().create(true).append(true), &path).map_err(io(&path))
}

/// Checks that a folder of a run or of a sweep, which may come from elsewhere, contains no symbolic links: writing to one
/// would change a file or folder outside of it.
///
/// # Errors
/// The first link, or a folder that cannot be read.
pub fn refuse_links(root: &Path) -> Result<()> {
    for entry in WalkDir::new(root).min_depth(1) {
        let entry = entry.map_err(walk_error(root))?;
        if entry.path_is_symlink() {
            let link = entry.path().strip_prefix(root).unwrap_or(entry.path()).display();
            let reason = format!(
                "contains the link `{link}`, and links are not followed; replace it by a file or folder"
            );
            return Err(Error::RunDir { dir: root.into(), reason });
        }
    }
    Ok(())
}
