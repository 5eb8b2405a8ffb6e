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

mod lock;
mod read;

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    path::{Path, PathBuf},
    time::Instant,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use walkdir::WalkDir;

use crate::{
    config::Config,
    error::{Error, Result, if_there, io},
    hub::checksum_list::{self, ChecksumList},
    metrics::{PoolUsage, Summary},
    run::{Checkpoint, Checkpoints, RunRecord},
    system::{
        atomic::{
            LOCK, Placement, UNFINISHED, move_to, place_of, recover, remove_unfinished, staging_folder,
            sync_folder, walk_error, write_atomic, write_json,
        },
        files, hex,
    },
    train::{Accuracies, Cost, EpochReport, Evaluation, Snapshot, Trainer},
    traits::{ByRole, Role, Skipped, Task},
};

pub use self::{
    lock::{Holder, holder, is_held, lock, lock_file},
    read::{
        check_same, read_confusion, read_epochs, read_model, read_prompt_use, read_record, read_results,
        read_results_so_far,
    },
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

/// Contents of `results.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// Version of the format, [`Results::FORMAT`]. Files without this key have version 1.
    #[serde(default = "first_format")]
    pub format: u32,
    /// Accuracies of the student in percent, `null` if it was not trained.
    pub student: Option<Summary>,
    /// Accuracies of the teacher in percent, `null` if it was not trained.
    pub teacher: Option<Summary>,
    /// Number of test images of each finished task, without skipped ones. Empty in files of older versions.
    #[serde(default)]
    pub test_images: Vec<usize>,
    /// Accuracy in percent on the test images of each class after the last finished task, in stream order; `null` for a
    /// class without test images, and for a network that was not trained.
    #[serde(default)]
    pub class_accuracy: ByRole<Option<Vec<Option<f64>>>>,
    /// Usage of the prompts of each pool by test images after the last finished task. An empty list for a network whose
    /// methods select no prompts.
    #[serde(default)]
    pub prompt_use: ByRole<Option<Vec<PoolUsage>>>,
    /// Number of trainable parameters, and multiply-accumulate operations of one image.
    #[serde(default)]
    pub cost: ByRole<Option<Cost>>,
    /// Number of finished tasks.
    pub tasks_done: usize,
    /// Number of tasks of the run: all tasks of the stream, at most `stream.max_tasks`.
    pub tasks: usize,
    /// Seconds of the run, without the time between a stop and resuming.
    pub wall_seconds: f64,
    /// Peak resident memory, if the system reports it.
    #[serde(default)]
    pub peak_memory_bytes: Option<u64>,
    /// Number of unreadable images that were skipped (`stream.input.on_error = "skip"`).
    #[serde(default)]
    pub skipped_images: Skipped,
}

fn first_format() -> u32 {
    1
}

impl Results {
    /// Current version of the format. Version 1 calls trainable parameters `trained_numbers`.
    pub const FORMAT: u32 = 2;

    /// Returns the accuracies of one network, if it was trained.
    pub fn of(&self, role: Role) -> Option<&Summary> {
        match role {
            Role::Student => self.student.as_ref(),
            Role::Teacher => self.teacher.as_ref(),
        }
    }
}

/// Contents of `run.json`.
#[derive(Serialize)]
struct RecordFile<'a> {
    #[serde(flatten)]
    record: &'a RunRecord,
    /// SHA-256 of the original `config.toml`.
    config_sha256: String,
}

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
    _lock: File,
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
        let mut result = Err(Error::Stopped);
        for path in Self::default_paths(config).filter(|path| !path.exists()) {
            result = Self::create(&path, config, record, needed, false);
            if result.is_ok() || !path.exists() {
                break;
            }
        }
        result
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
        let fail = |reason: String| Error::RunDir { dir: root.into(), reason };
        check_vacant(root, overwrite)?;
        let create = || -> Result<Self> {
            let place = place_of(root)?;
            // An existing folder stays locked until the new run is in it. Another process may have used it since the
            // check.
            let mut held = if place.is_dir() { Some(lock(&place)?) } else { None };
            let placement = match check_contents(root, overwrite)? {
                false => Placement::Replace,
                true if held.is_some() => Placement::Fill,
                true => Placement::New,
            };
            let staging = staging_folder(&place, placement)?;
            let free = free_bytes(staging.path())?;
            if free < needed {
                let short =
                    format!("the run needs {} kB of disk space, {} kB are free", needed / 1000, free / 1000);
                return Err(io(&place)(std::io::Error::new(std::io::ErrorKind::StorageFull, short)));
            }
            // The lock file of a replaced folder is removed with the folder, so the new folder gets its own lock.
            let lock = match held.take_if(|_| placement == Placement::Fill) {
                Some(lock) => lock,
                None => lock(staging.path())?,
            };
            let toml = config.with_loaded_plugins().to_toml()?;
            write_atomic(&staging.path().join(CONFIG), toml.as_bytes())?;
            let written = RecordFile { record, config_sha256: hex(&Sha256::digest(&toml)) };
            write_json(&staging.path().join(RECORD), &written)?;
            let files = (append(staging.path(), METRICS)?, append(staging.path(), LOG)?);
            let checkpoints = Checkpoints::open(root.join(CHECKPOINTS), &config.run.checkpoint)?;
            move_to(staging, &place, placement, RECORD)?;
            Ok(Self::of(root, files, config, toml, checkpoints, lock))
        };
        create().map_err(|e| match e {
            refused @ Error::RunDir { .. } => refused,
            // Another process has started a run there since the check.
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::DirectoryNotEmpty => {
                occupied(root)
            }
            e => fail(format!("cannot be written: {e}")),
        })
    }

    fn of(
        root: &Path,
        (metrics, log): (File, File),
        config: &Config,
        toml: String,
        checkpoints: Checkpoints,
        lock: File,
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
        Ok((Self::of(root, files, config, toml, checkpoints, lock), checkpoint, original))
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
    lock::check_free(root)?;
    let parent = nearest_folder(&place);
    let metadata = fs::metadata(parent).map_err(|e| fail(format!("cannot be written: {e}")))?;
    if metadata.permissions().readonly() {
        return Err(fail(format!("cannot be written: `{}` is read-only", parent.display())));
    }
    Ok(())
}

/// Checks the contents of a directory that a run is to be written to. Returns whether it is missing or empty, apart from
/// the first files of a run whose start was interrupted.
fn check_contents(root: &Path, overwrite: bool) -> Result<bool> {
    let fail = |reason: String| Error::RunDir { dir: root.into(), reason };
    let entries = if_there(fs::read_dir(root)).map_err(|e| fail(format!("cannot be used: {e}")))?;
    let entries = entries.into_iter().flatten().flatten();
    let entries: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into()).collect();
    let is_left = |name: &String| name.starts_with(UNFINISHED);
    let is_first = |name: &String| [CONFIG, METRICS, LOG, LOCK].contains(&name.as_str()) || is_left(name);
    if entries.iter().all(is_first) {
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

/// Checks that a run directory, which may come from elsewhere, contains no symbolic links: writing to one would change a
/// file or folder outside the run.
fn refuse_links(root: &Path) -> Result<()> {
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
