//! The directory of one run: configuration, record, results and models, each written whole or not at all; only the
//! epoch lines and the log grow as the run goes on.
//!
//! ```text
//! config.toml               resolved configuration; running it repeats the run
//! run.json                  versions, weights with SHA-256, normalisation, split, device
//! metrics.jsonl             one line for every epoch
//! results.json              accuracy matrices and what follows from them, rewritten after every task
//! accuracy_student.csv      A[i][j], likewise accuracy_teacher.csv
//! confusion_student.csv     test images by true and predicted class after the last task, likewise confusion_teacher.csv
//! models/task_N/            student.safetensors and teacher.safetensors after task N, and prompt_use.json, if images choose prompts
//! tensorboard/              event files, with `record.tensorboard`; written by the program
//! checkpoints/              the newest checkpoints, as long as the run is not done
//! log.txt                   everything that was logged
//! report.html               the page that `cdl report` makes of it, if asked
//! .lock                     held by the process that writes here
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
        atomic::{UNFINISHED, beside, folder_of, remove_unfinished, settle, write_atomic, write_json},
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

/// All that may stand in a run directory.
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

/// What `results.json` holds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// Version of the format, [`Results::FORMAT`]; files without it are version 1.
    #[serde(default = "first_format")]
    pub format: u32,
    /// The student's accuracies in percent, `null` if it was not trained.
    pub student: Option<Summary>,
    /// The teacher's, `null` if it was not trained.
    pub teacher: Option<Summary>,
    /// Accuracy in percent on each class's test images after the last finished task, in stream order; `null` for a class
    /// without test images, and for a network that was not trained.
    #[serde(default)]
    pub class_accuracy: ByRole<Option<Vec<Option<f64>>>>,
    /// Which prompts the test images took after the last finished task, pool by pool; an empty list for a network whose
    /// methods do not choose.
    #[serde(default)]
    pub prompt_use: ByRole<Option<Vec<PoolUse>>>,
    /// Numbers trained, and multiply-adds of one image.
    #[serde(default)]
    pub cost: ByRole<Option<Cost>>,
    /// Tasks finished.
    pub tasks_done: usize,
    /// Number of tasks of the run: those of the stream, or of these the first `stream.max_tasks`.
    pub tasks: usize,
    /// Seconds since the run began, without those between a stop and going on.
    pub wall_seconds: f64,
    /// The most memory that was resident at once, where the system tells.
    #[serde(default)]
    pub peak_memory_bytes: Option<u64>,
    /// Images left out because they could not be read (`stream.input.on_error = "skip"`).
    #[serde(default)]
    pub skipped_images: Skipped,
}

fn first_format() -> u32 {
    1
}

impl Results {
    /// Version of the format that this version writes. Version 1 calls trainable parameters `trained_numbers`.
    pub const FORMAT: u32 = 2;

    /// Accuracies of one network, if it was trained.
    pub fn of(&self, role: Role) -> Option<&Summary> {
        match role {
            Role::Student => self.student.as_ref(),
            Role::Teacher => self.teacher.as_ref(),
        }
    }
}

/// What `run.json` holds.
#[derive(Serialize)]
struct Written<'a> {
    #[serde(flatten)]
    record: &'a RunRecord,
    /// Of `config.toml` as it was begun with.
    config_sha256: String,
}

/// A run directory that is open for writing.
#[derive(Debug)]
pub struct RunDir {
    root: PathBuf,
    metrics: File,
    log: Option<File>,
    /// The configuration that the run was begun with, in TOML.
    config: String,
    checkpoints: Checkpoints,
    /// After which it stops, whatever the stream has.
    max_tasks: usize,
    /// Locked as long as it is open.
    _lock: File,
}

impl RunDir {
    /// `runs/<config>-seed<seed>-<UTC time>`, with a number after it if that is there already.
    pub fn default_path(config: &Config) -> PathBuf {
        let time = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S");
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
        let fail = |reason: String| Error::RunDir { dir: root.into(), reason };
        // Held until the run that is there has made place.
        let earlier = if vacant(root, overwrite)? { None } else { Some(lock(root)?) };
        let place = || -> Result<Self> {
            let parent = folder_of(root);
            fs::create_dir_all(parent).map_err(io(parent))?;
            let free = free_bytes(parent)?;
            if free < needed {
                let short = format!("the run needs {} kB, {} kB are free", needed / 1000, free / 1000);
                return Err(io(parent)(std::io::Error::new(std::io::ErrorKind::StorageFull, short)));
            }
            let fresh = beside(parent)?;
            let toml = config.to_toml()?;
            write_atomic(&fresh.path().join(CONFIG), toml.as_bytes())?;
            let written = Written { record, config_sha256: hex(&Sha256::digest(&toml)) };
            write_json(&fresh.path().join(RECORD), &written)?;
            let files = (append(fresh.path(), METRICS)?, append(fresh.path(), LOG)?);
            let lock = lock(fresh.path())?;
            let checkpoints = Checkpoints::open(root.join(CHECKPOINTS), &config.run.checkpoint)?;
            settle(fresh, root, earlier.is_some())?;
            Ok(Self::of(root, files, config, toml, checkpoints, lock))
        };
        place().map_err(|e| match e {
            refused @ Error::RunDir { .. } => refused,
            // Another process has begun a run there since this one looked.
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::DirectoryNotEmpty => taken(root),
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

    /// Opens the directory of a run that is to go on: its newest good checkpoint, if there is one, with the
    /// configuration that the run was begun with. `config` is the one that it goes on with.
    ///
    /// # Errors
    /// A directory that is no run's, that another process is writing to, or that cannot be written.
    pub fn open(root: &Path, config: &Config) -> Result<(Self, Option<Checkpoint>, Config)> {
        // Nothing is written to what is no run.
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
                let (begun, now) = (record["config_sha256"].as_str(), hex(&Sha256::digest(&toml)));
                if begun.is_some_and(|begun| begun != now) {
                    let reason = "config.toml is not the one that the run was begun with (its SHA-256 is not that in \
                                  run.json), and no checkpoint holds that one; begin another run";
                    return Err(Error::RunDir { dir: root.into(), reason: reason.into() });
                }
                (file, toml)
            }
        };
        let begun = Config::recorded(&origin, &toml)?;
        let files = (append(root, METRICS)?, append(root, LOG)?);
        let checkpoint = newest.map(|(checkpoint, _)| checkpoint);
        Ok((Self::of(root, files, config, toml, checkpoints, lock), checkpoint, begun))
    }

    /// Cuts `metrics.jsonl` back to its first `bytes`: what follows will be written again.
    ///
    /// # Errors
    /// A file that is shorter than that, or cannot be changed.
    pub fn cut_metrics(&mut self, bytes: u64) -> Result<()> {
        let path = self.root.join(METRICS);
        let length = self.metrics.metadata().map_err(io(&path))?.len();
        if length < bytes {
            let reason =
                format!("metrics.jsonl has {length} bytes; when the checkpoint was written it had {bytes}");
            return Err(Error::RunDir { dir: self.root.clone(), reason });
        }
        self.metrics.set_len(bytes).map_err(io(path))
    }

    /// Whether checkpoints are written at all.
    pub fn keeps_checkpoints(&self) -> bool {
        self.checkpoints.on()
    }

    /// Writes a checkpoint where the configuration asks for one, or wherever it is if `now` is set, and removes those
    /// that it replaces.
    ///
    /// # Errors
    /// No space, no permission: all that was written before stays.
    pub fn checkpoint(&mut self, moment: &Snapshot<'_>, now: bool, wall_seconds: f64) -> Result<()> {
        if !self.checkpoints.on() || !(now || self.checkpoints.due(moment.state.position)) {
            return Ok(());
        }
        let start = Instant::now();
        let metrics = self.sync_metrics()?;
        let checkpoint = Checkpoint::of(moment, &self.config, metrics, wall_seconds)?;
        let file = self.checkpoints.save(&checkpoint)?;
        tracing::debug!("{} written in {:.1} ms", file.display(), start.elapsed().as_secs_f64() * 1e3);
        Ok(())
    }

    /// Removes the checkpoints of a run that is done.
    pub fn finish(&mut self) -> Result<()> {
        self.checkpoints.clear()
    }

    /// Sees to it that the epoch lines are on disk; gives back their bytes.
    fn sync_metrics(&self) -> Result<u64> {
        let length = self.metrics.sync_data().and_then(|()| Ok(self.metrics.metadata()?.len()));
        length.map_err(io(self.root.join(METRICS)))
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
        tested: &Evaluation,
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
                Ok(of_role) => *cost.of_mut(role) = Some(of_role),
                Err(error) => tracing::warn!("the {}'s cost is not recorded: {error}", role.as_str()),
            }
        }
        for (role, confusion) in &tested.confusions {
            *class_accuracy.of_mut(*role) = Some(confusion.class_accuracy());
            write_atomic(&role_file(&self.root, "confusion", *role), &confusion.to_csv()?)?;
        }
        let results = Results {
            format: Results::FORMAT,
            student: accuracies.student.summary(),
            teacher: accuracies.teacher.summary(),
            class_accuracy,
            prompt_use: tested.prompt_use.clone(),
            cost,
            tasks_done: task.index + 1,
            tasks: task.count.min(self.max_tasks),
            wall_seconds,
            peak_memory_bytes: crate::system::memory::peak_bytes(),
            skipped_images,
        };
        write_json(&models.join(PROMPT_USE), &tested.prompt_use)?;
        write_json(&self.root.join(RESULTS), &results)?;
        Ok(results)
    }
}

fn taken(root: &Path) -> Error {
    let reason = match root.join(CHECKPOINTS).exists() {
        true => format!(
            "already exists and holds a run that is not finished; go on with it: cdl resume {}, choose another, or add \
             --overwrite",
            root.display()
        ),
        false => "already exists; choose another or add --overwrite".into(),
    };
    Error::RunDir { dir: root.into(), reason }
}

/// Refuses a directory that a run may not be written to, as far as can be seen without writing; whether there is nothing
/// in it, and no run to be replaced.
///
/// # Errors
/// A directory that is not empty, unless it holds a run and nothing else and `overwrite` is set; a place below something
/// that is no folder, or that is read-only.
pub fn vacant(root: &Path, overwrite: bool) -> Result<bool> {
    let fail = |reason: String| Error::RunDir { dir: root.into(), reason };
    let entries = if_there(fs::read_dir(root)).map_err(|e| fail(format!("cannot be used: {e}")))?;
    let entries = entries.into_iter().flatten().flatten();
    let entries: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into()).collect();
    let occupied = !entries.is_empty();
    if occupied && !(root.join(CONFIG).exists() && root.join(RECORD).exists()) {
        return Err(fail("already exists and holds something that is not a run; choose another".into()));
    }
    // What --overwrite would not replace is refused in the same words without it.
    let ours = |name: &str| NAMES.contains(&name) || name.starts_with(UNFINISHED);
    if let Some(stranger) = entries.iter().filter(|name| !ours(name)).min() {
        return Err(fail(format!(
            "already exists and holds `{stranger}` beside a run, which would be lost; move it away or choose another"
        )));
    }
    lock::check_free(root)?;
    if occupied && !overwrite {
        return Err(taken(root));
    }
    let parent = nearest_folder(root.parent().unwrap_or(root));
    let metadata = fs::metadata(parent).map_err(|e| fail(format!("cannot be written: {e}")))?;
    if metadata.permissions().readonly() {
        return Err(fail(format!("cannot be written: `{}` is read-only", parent.display())));
    }
    Ok(!occupied)
}

/// Bytes that are free for a run directory, which need not be there yet.
pub fn free_bytes(root: &Path) -> Result<u64> {
    let folder = nearest_folder(root);
    fs4::available_space(folder).map_err(io(folder))
}

/// `path`, or the nearest folder above it that is there.
fn nearest_folder(path: &Path) -> &Path {
    let there = path.ancestors().find(|folder| !folder.as_os_str().is_empty() && folder.exists());
    there.unwrap_or(Path::new("."))
}

/// File of one network's table `what`.
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
