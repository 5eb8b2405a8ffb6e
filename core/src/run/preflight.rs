//! A look at everything that a run needs, before it begins: what would fail later is found now, and all of it at once.
//!
//! Nothing is written but what is fetched into the hub's cache, as the run itself would.

use std::{collections::BTreeSet, path::Path, time::Instant};

use serde::Serialize;

use crate::{
    config::{Config, Draft, RunConfig},
    error::{Error, Result},
    run::{
        Experiment,
        builder::{Parts, Until},
        directory,
    },
    system::memory,
    train::{Optimizer, Trainer},
    traits::{BackboneSpec, Batch, ClassCount, DataRecord, EpochKey, Role, TaskStream},
};

/// Steps of each network before those that are timed, besides those whose images were prepared ahead.
const WARMUP: usize = 2;

/// What to look at.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// Training steps of each network that are timed, and test batches; 0: nothing is measured.
    pub steps: usize,
    /// Training images and test images of each task that are decoded; all, where the stream reads all of them itself
    /// before a run.
    pub images: usize,
    /// Where the run would be written.
    pub run_dir: &'a Path,
    /// Whether a run there may be replaced.
    pub overwrite: bool,
}

/// What was found.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// The data, if they were found.
    pub data: Option<Data>,
    /// The networks whose weights were found.
    pub networks: Vec<NetworkReport>,
    /// Space for results, if the models could be built.
    pub disk: Option<Disk>,
    /// Times, if they were measured.
    pub time: Option<Time>,
    /// The most memory that was resident while measuring, where the system tells.
    pub peak_memory_bytes: Option<u64>,
    /// What could not be looked at, and what it waits for.
    pub not_checked: Vec<String>,
    /// Everything that would stop the run.
    #[serde(serialize_with = "sentences")]
    pub mistakes: Vec<Error>,
}

/// The images, as they become tasks.
#[derive(Debug, Serialize)]
pub struct Data {
    /// The stream's name.
    pub stream: String,
    /// Number of classes that the tasks bring.
    pub classes: usize,
    /// Side of an image in pixels, as the networks see it.
    pub image_size: usize,
    /// Each task.
    pub tasks: Vec<TaskReport>,
    /// SHA-256 of the split, as in `run.json`.
    pub split_sha256: String,
    /// The files, as in `run.json`.
    pub files: Vec<DataRecord>,
}

/// The images of a task.
#[derive(Debug, Serialize)]
pub struct TaskReport {
    /// Classes that arrive with it.
    pub classes: usize,
    /// Training images, rehearsed ones included.
    pub train: usize,
    /// Test images.
    pub test: usize,
    /// Images of both kinds that were decoded to see whether they can be.
    pub looked_at: usize,
    /// Those that could not be.
    pub damaged: usize,
}

/// A network whose weights were found.
#[derive(Debug, Serialize)]
pub struct NetworkReport {
    /// Teacher or student.
    pub role: Role,
    /// Sizes, normalisation, and source, file and SHA-256 of the weights.
    #[serde(flatten)]
    pub spec: BackboneSpec,
}

/// Space for the run directory.
#[derive(Debug, Serialize)]
pub struct Disk {
    /// Bytes that the run will write.
    pub needed: u64,
    /// Bytes that are free there.
    pub free: u64,
}

/// Times, measured on steps of the first task, and what the whole run takes at this pace.
#[derive(Debug, Serialize)]
pub struct Time {
    /// Of each network that is trained.
    pub networks: Vec<NetworkTime>,
    /// Images a second when all trained networks are tested; queries that later tests find again count in full.
    pub test_images_per_second: f64,
    /// Test images of the whole run: after each task those of all tasks so far.
    pub test_images: usize,
    /// Seconds of the whole run.
    pub seconds: f64,
}

/// Time of a network's training.
#[derive(Debug, Serialize)]
pub struct NetworkTime {
    /// Teacher or student.
    pub role: Role,
    /// Median seconds of a step, with what it waits for its images.
    pub step_seconds: f64,
    /// Steps of the whole run.
    pub steps: usize,
}

fn sentences<S: serde::Serializer>(mistakes: &[Error], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(mistakes.iter().map(ToString::to_string))
}

/// Looks at everything. `seen` is told of each image that is looked at.
pub fn check(draft: Draft, plan: &Plan<'_>, seen: &(dyn Fn() + Sync)) -> Report {
    let Draft { config, mistakes, faulty } = draft;
    let mut report = Report { mistakes, ..Report::default() };
    let occupied = directory::vacant(plan.run_dir, plan.overwrite).err();
    match config {
        Some(config) => report.look(config, &faulty, plan, seen),
        None => report.not_checked.push("data, networks and methods: need a configuration".into()),
    }
    report.mistakes.extend(occupied);
    report
}

impl Report {
    fn look(
        &mut self,
        mut config: Config,
        faulty: &BTreeSet<String>,
        plan: &Plan<'_>,
        seen: &(dyn Fn() + Sync),
    ) {
        let all = config.run.stream.put_off_reading();
        let (mut parts, mistakes) = Parts::build(&config, faulty, Until::Last);
        self.mistakes.extend(mistakes);
        self.not_checked.append(&mut parts.skipped);
        if let Some(stream) = &parts.stream {
            let images = if all { usize::MAX } else { plan.images };
            match self.look_at_data(&config.run, stream.as_ref(), images, seen) {
                Ok(data) => self.data = Some(data),
                Err(error) => self.mistakes.push(error),
            }
        }
        for role in [Role::Teacher, Role::Student] {
            let spec = parts.backbone(role).map(|backbone| backbone.spec().clone());
            self.networks.extend(spec.map(|spec| NetworkReport { role, spec }));
        }
        if !parts.complete() {
            return self.not_checked.push("disk, memory and time: need all parts of the run".into());
        }
        let done = parts.assemble(&config).and_then(|mut experiment| {
            self.disk = Some(disk(&experiment, &config, plan.run_dir)?);
            if plan.steps > 0 && self.mistakes.is_empty() {
                let skipped = WARMUP + config.run.stream.batches_ahead();
                self.time = Some(time(&mut experiment, skipped, plan.steps)?);
                self.peak_memory_bytes = memory::peak_bytes();
            } else {
                let needs = if plan.steps == 0 { "at least one step" } else { "a run without mistakes" };
                self.not_checked.push(format!("memory and time: need {needs}"));
            }
            Ok(())
        });
        self.mistakes.extend(done.err());
        if let Some(Disk { needed, free }) = self.disk
            && free < needed
        {
            let reason = format!("the run needs {} kB, {} kB are free", needed / 1000, free / 1000);
            self.mistakes.push(Error::RunDir { dir: plan.run_dir.into(), reason });
        }
    }

    fn look_at_data(
        &mut self,
        run: &RunConfig,
        stream: &dyn TaskStream,
        images: usize,
        seen: &(dyn Fn() + Sync),
    ) -> Result<Data> {
        let mut tasks = Vec::new();
        for task in stream.tasks() {
            let files = stream.image_files();
            let found = files.map(|files| files.inspect(task.index, images, seen)).unwrap_or_default();
            tasks.push(TaskReport {
                classes: task.classes.len(),
                train: stream.train_count(task.index),
                test: stream.test_count(task.index),
                looked_at: found.looked_at,
                damaged: found.damaged.len(),
            });
            // Images that the run would leave out do not stop it.
            if !run.stream.leaves_out_damaged() {
                self.mistakes.extend(found.damaged);
            }
        }
        let record = stream.record()?;
        Ok(Data {
            stream: run.stream.name.clone(),
            classes: tasks.iter().map(|task| task.classes).sum(),
            image_size: stream.image_size(),
            tasks,
            split_sha256: record.fingerprint,
            files: record.files,
        })
    }
}

/// What a look at all images of a configuration found.
#[derive(Debug)]
pub struct Verified {
    /// Images of each class.
    pub classes: Vec<ClassCount>,
    /// Images that were decoded, or could not be.
    pub looked_at: usize,
    /// Files that they come from.
    pub files: usize,
    /// Those that could not be decoded.
    pub damaged: Vec<Error>,
}

/// Decodes every image that a run would use; `seen` is told of each.
///
/// # Errors
/// Data that cannot be found or sorted into tasks.
pub fn verify(config: &Config, seen: &(dyn Fn() + Sync)) -> Result<Verified> {
    let mut config = config.clone();
    config.run.stream.put_off_reading();
    let stream = inputs(&config, false)?;
    let record = stream.record()?;
    let mut all = Verified {
        classes: record.class_counts,
        looked_at: 0,
        files: record.files.iter().map(|record| record.files).sum(),
        damaged: Vec::new(),
    };
    let Some(files) = stream.image_files() else { return Ok(all) };
    for task in stream.tasks() {
        let found = files.inspect(task.index, usize::MAX, seen);
        all.looked_at += found.looked_at;
        all.damaged.extend(found.damaged);
    }
    Ok(all)
}

/// Brings data and weights onto this machine, as a run would, and says which data these are.
///
/// # Errors
/// What cannot be had.
pub fn fetch(config: &Config) -> Result<Vec<DataRecord>> {
    let mut config = config.clone();
    config.run.stream.put_off_reading();
    Ok(inputs(&config, true)?.record()?.files)
}

fn inputs(config: &Config, networks: bool) -> Result<Box<dyn TaskStream>> {
    let (parts, mistakes) = Parts::inputs(config, networks);
    match (mistakes.into_iter().next(), parts.stream) {
        (None, Some(stream)) => Ok(stream),
        (Some(error), _) => Err(error),
        (None, None) => Err(Error::Tasks("the stream could not be built".into())),
    }
}

fn disk(experiment: &Experiment, config: &Config, run_dir: &Path) -> Result<Disk> {
    Ok(Disk { needed: experiment.disk_bytes(config)?, free: directory::free_bytes(run_dir)? })
}

/// Trains and tests for a moment; the experiment is not fit for a run afterwards. Of each, the first `skipped` batches are
/// not timed: what was prepared ahead would come for nothing.
fn time(experiment: &mut Experiment, skipped: usize, steps: usize) -> Result<Time> {
    let Experiment { stream, trainer, .. } = experiment;
    let batch_size = trainer.settings.batch_size;
    let Some(task) = stream.tasks().first().cloned() else {
        return Err(Error::Tasks("the stream has no tasks".into()));
    };
    trainer.begin_task(&task)?;
    let mut networks = Vec::new();
    for role in trainer.settings.roles.clone() {
        let task = crate::traits::Task { classes: stream.train_classes(task.index), ..task };
        let mut optimizer = Optimizer::new(&trainer.settings.optimizer, trainer.trainable(role))?;
        let mut seconds = Vec::new();
        let epochs = (0..).map(|epoch| EpochKey { task: task.index, role, epoch });
        let mut batches = epochs.flat_map(|key| stream.train_batches(key, batch_size, 0));
        while seconds.len() < skipped + steps {
            let start = Instant::now();
            let Some(batch) = batches.next() else { break };
            let loss = trainer.loss(role, &task, &batch?)?;
            Trainer::update(&loss, &mut optimizer)?;
            drop(loss);
            seconds.push(start.elapsed().as_secs_f64());
        }
        let per_epoch = |index: usize| stream.train_count(index) / batch_size;
        let whole = stream.tasks().iter().map(|task| trainer.settings.epochs * per_epoch(task.index)).sum();
        networks.push(NetworkTime {
            role,
            step_seconds: median(seconds.into_iter().skip(skipped).collect()),
            steps: whole,
        });
    }
    let mut rates = Vec::new();
    // As often as need be; a pass that is begun again has nothing prepared.
    let passes = if stream.test_count(task.index) == 0 { 0 } else { skipped + steps };
    let mut batches = (0..passes).flat_map(|_| stream.test_batches(task.index, batch_size));
    while rates.len() < passes {
        let start = Instant::now();
        let Some(batch) = batches.next().transpose()? else { break };
        predict(trainer, &batch)?;
        rates.push(batch.len() as f64 / start.elapsed().as_secs_f64());
    }
    let test_images_per_second = median(rates.into_iter().skip(skipped).collect());
    let tests = stream.tasks().len();
    let test_images = stream.tasks().iter().map(|task| stream.test_count(task.index) * (tests - task.index));
    let test_images: usize = test_images.sum();
    let training: f64 = networks.iter().map(|n| n.step_seconds * n.steps as f64).sum();
    let seconds = training + test_images as f64 / test_images_per_second;
    Ok(Time { networks, test_images_per_second, test_images, seconds })
}

fn predict(trainer: &Trainer, batch: &Batch) -> Result<()> {
    for &role in &trainer.settings.roles {
        trainer.predict(role, &batch.pixels)?.to_device(&candle_core::Device::Cpu)?;
    }
    Ok(())
}

/// The middle one, of a few numbers the upper of the two; NaN of none.
fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
}
