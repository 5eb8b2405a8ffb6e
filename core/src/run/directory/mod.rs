//! Run directory: configuration, record, results and models. Each file is written atomically; only the epoch lines and
//! the log are appended to.
//!
//! ```text
//! config.toml               resolved configuration; running it repeats the run
//! run.json                  versions, weights with SHA-256, normalisation, split, device
//! metrics.jsonl             one line for every epoch
//! results.json              accuracy matrices and derived metrics, rewritten after every task
//! accuracy_student.csv      A[i][j]; also accuracy_teacher.csv
//! confusion_student.csv     test images by true and predicted class after the last task; also confusion_teacher.csv
//! models/task_N/            student.safetensors, teacher.safetensors and prompt_use.json after task N
//! tensorboard/              event files, with `record.tensorboard`; written by the program
//! checkpoints/              the newest checkpoints, until the run is finished
//! log.txt                   log of the run
//! report.html               output of `cdl report`
//! .lock                     lock of the process that writes here
//! ```

mod lock;
mod read;

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    time::Instant,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    config::Config,
    error::{Error, Result, if_there, io},
    metrics::{PoolUse, Summary},
    run::{Checkpoint, Checkpoints, RunRecord},
    system::{
        atomic::{
            UNFINISHED, folder_of, move_to, remove_unfinished, temporary_folder, write_atomic, write_json,
        },
        hex,
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
    "models",
    "tensorboard",
    CHECKPOINTS,
    LOG,
    "report.html",
    ".lock",
];

/// Contents of `results.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// Version of the format, [`Results::FORMAT`]. Files without it have version 1.
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
    pub prompt_use: ByRole<Option<Vec<PoolUse>>>,
    /// Number of trainable parameters, and multiply-adds of one image.
    #[serde(default)]
    pub cost: ByRole<Option<Cost>>,
    /// Number of finished tasks.
    pub tasks_done: usize,
    /// Number of tasks of the run: those of the stream, at most `stream.max_tasks`.
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
    /// Returns `runs/<config>-seed<seed>-<UTC time>`, with a number appended if it exists already.
    pub fn default_path(config: &Config) -> PathBuf {
        let time = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S");
        let name = format!("{}-seed{}-{time}", config.name(), config.run.seed);
        let numbered = (2..).map(|number| format!("{name}-{number}"));
        let mut paths =
            std::iter::once(name.clone()).chain(numbered).map(|name| Path::new("runs").join(name));
        paths.find(|path| !path.exists()).unwrap_or_default()
    }

    /// Creates the directory with configuration and record. It is written to a temporary folder beside `root` and then
    /// moved, so that a failure leaves no incomplete directory and does not remove an earlier run.
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
        // The earlier run stays locked until it has been replaced.
        let earlier = if check_vacant(root, overwrite)? { None } else { Some(lock(root)?) };
        let create = || -> Result<Self> {
            let parent = folder_of(root);
            fs::create_dir_all(parent).map_err(io(parent))?;
            let free = free_bytes(parent)?;
            if free < needed {
                let short = format!("the run needs {} kB, {} kB are free", needed / 1000, free / 1000);
                return Err(io(parent)(std::io::Error::new(std::io::ErrorKind::StorageFull, short)));
            }
            let temporary = temporary_folder(parent)?;
            let toml = config.to_toml()?;
            write_atomic(&temporary.path().join(CONFIG), toml.as_bytes())?;
            let written = RecordFile { record, config_sha256: hex(&Sha256::digest(&toml)) };
            write_json(&temporary.path().join(RECORD), &written)?;
            let files = (append(temporary.path(), METRICS)?, append(temporary.path(), LOG)?);
            let lock = lock(temporary.path())?;
            let checkpoints = Checkpoints::open(root.join(CHECKPOINTS), &config.run.checkpoint)?;
            move_to(temporary, root, earlier.is_some())?;
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
        Self { root: root.into(), metrics, log: Some(log), config: toml, checkpoints, max_tasks, _lock: lock }
    }

    /// Opens the directory of a run to resume it with `config`. Returns the newest valid checkpoint, if there is one,
    /// and the original configuration of the run.
    ///
    /// # Errors
    /// A directory that is not a run, that another process is writing to, or that cannot be written.
    pub fn open(root: &Path, config: &Config) -> Result<(Self, Option<Checkpoint>, Config)> {
        // First, so that nothing is written to a directory that is not a run.
        let record = read_record(root)?;
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

    /// Truncates `metrics.jsonl` to its first `bytes`. The run writes the following lines again.
    ///
    /// # Errors
    /// A file that is shorter or cannot be changed.
    pub fn truncate_metrics(&mut self, bytes: u64) -> Result<()> {
        let path = self.root.join(METRICS);
        let length = self.metrics.metadata().map_err(io(&path))?.len();
        if length < bytes {
            let reason =
                format!("metrics.jsonl has {length} bytes; it had {bytes} when the checkpoint was written");
            return Err(Error::RunDir { dir: self.root.clone(), reason });
        }
        self.metrics.set_len(bytes).map_err(io(path))
    }

    /// Returns whether checkpoints are written.
    pub fn writes_checkpoints(&self) -> bool {
        self.checkpoints.enabled()
    }

    /// Writes a checkpoint if one is due, or in any case if `now` is set, and removes those that it replaces.
    ///
    /// # Errors
    /// No space, no permission. Earlier checkpoints are kept.
    pub fn checkpoint(&mut self, snapshot: &Snapshot<'_>, now: bool, wall_seconds: f64) -> Result<()> {
        if !self.checkpoints.enabled() || !(now || self.checkpoints.due(snapshot.state.position)) {
            return Ok(());
        }
        let start = Instant::now();
        let metrics = self.sync_metrics()?;
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

    /// Returns the log file `log.txt` to the first caller.
    pub fn take_log(&mut self) -> Option<File> {
        self.log.take()
    }

    /// Returns the path of the directory.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Appends a line to `metrics.jsonl`.
    pub fn epoch(&mut self, report: &EpochReport) -> Result<()> {
        let path = self.root.join(METRICS);
        let mut line = serde_json::to_vec(report)
            .map_err(|e| Error::RunDir { dir: self.root.clone(), reason: e.to_string() })?;
        line.push(b'\n');
        self.metrics.write_all(&line).map_err(io(path))
    }

    /// Writes models and results after a task.
    pub fn task(
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

/// Checks, without writing, that a run may be written to a directory. Returns whether it is empty, so that no run is
/// replaced.
///
/// # Errors
/// A directory that is not empty, unless it contains only a run and `overwrite` is set; a path whose parent is not a
/// folder or is read-only.
pub fn check_vacant(root: &Path, overwrite: bool) -> Result<bool> {
    let fail = |reason: String| Error::RunDir { dir: root.into(), reason };
    let entries = if_there(fs::read_dir(root)).map_err(|e| fail(format!("cannot be used: {e}")))?;
    let entries = entries.into_iter().flatten().flatten();
    let entries: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into()).collect();
    let is_occupied = !entries.is_empty();
    if is_occupied && !(root.join(CONFIG).exists() && root.join(RECORD).exists()) {
        return Err(fail("already exists and is not a run directory; choose another directory".into()));
    }
    // Checked also without --overwrite, so that the message does not suggest an option that would fail.
    let belongs = |name: &str| NAMES.contains(&name) || name.starts_with(UNFINISHED);
    if let Some(other) = entries.iter().filter(|name| !belongs(name)).min() {
        return Err(fail(format!(
            "already exists and contains `{other}`, which does not belong to the run and would be lost; move it away or \
             choose another directory"
        )));
    }
    lock::check_free(root)?;
    if is_occupied && !overwrite {
        return Err(occupied(root));
    }
    let parent = nearest_folder(root.parent().unwrap_or(root));
    let metadata = fs::metadata(parent).map_err(|e| fail(format!("cannot be written: {e}")))?;
    if metadata.permissions().readonly() {
        return Err(fail(format!("cannot be written: `{}` is read-only", parent.display())));
    }
    Ok(!is_occupied)
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

/// Returns the file of table `what` of one network.
fn role_file(root: &Path, what: &str, role: Role) -> PathBuf {
    root.join(format!("{what}_{}.csv", role.as_str()))
}

fn model_dir(root: &Path, task: usize) -> PathBuf {
    root.join("models").join(format!("task_{}", task + 1))
}

fn model_file(models: &Path, role: Role) -> PathBuf {
    models.join(format!("{}.safetensors", role.as_str()))
}

fn append(root: &Path, name: &str) -> Result<File> {
    let path = root.join(name);
    OpenOptions::new().create(true).append(true).open(&path).map_err(io(&path))
}
