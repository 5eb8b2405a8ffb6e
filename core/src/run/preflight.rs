//! A look at everything that a run needs, before it begins: what would fail later is found now, and all of it at once.
//!
//! Nothing is written but what is fetched into the hub's cache, as the run itself would.

use std::{collections::BTreeSet, path::Path, time::Instant};

use candle_core::Device;
use serde::Serialize;

use crate::{
    config::{Config, Draft, RunConfig},
    error::{Error, Result},
    run::{
        Experiment,
        builder::{self, RunBuilder},
        directory,
    },
    system::memory,
    train::{DistillerStack, Network, Optimizer, Trainer},
    traits::{BackboneSpec, ClassCount, DataRecord, EpochKey, QuerySource, Role, TaskStream},
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
    pub errors: Vec<Error>,
    /// Sections and top-level keys with a refused value. They are built without it for the sake of the others; what
    /// else is wrong with them may follow from that, and is not reported.
    #[serde(skip)]
    faulty: BTreeSet<String>,
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

fn sentences<S: serde::Serializer>(errors: &[Error], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(errors.iter().map(ToString::to_string))
}

/// The section or top-level key that a dotted key belongs to.
fn section_of(key: &str) -> &str {
    let own_learner = ["teacher.learner", "student.learner"].into_iter().find(|own| key.starts_with(own));
    own_learner.or_else(|| key.split('.').next()).unwrap_or(key)
}

/// Checks everything that a run needs. `seen` is called for each image that is decoded.
pub fn check(draft: Draft, plan: &Plan<'_>, seen: &(dyn Fn() + Sync)) -> Report {
    let Draft { config, errors } = draft;
    let faulty = errors.iter().filter_map(Error::key).map(|key| section_of(key).into()).collect();
    let mut report = Report { errors, faulty, ..Report::default() };
    let occupied = directory::vacant(plan.run_dir, plan.overwrite).err();
    match config {
        Some(config) => report.look(config, plan, seen),
        None => report.not_checked.push("data, networks and methods: need a configuration".into()),
    }
    report.errors.extend(occupied);
    report
}

impl Report {
    /// The part, or `None` where its error is noted; an error of both networks' learners is noted once.
    fn note<T>(&mut self, section: &str, built: Result<T>) -> Option<T> {
        match built {
            Ok(built) => Some(built),
            Err(_) if self.faulty.contains(section) => self.skip(section, "valid settings"),
            Err(error) => {
                let message = error.to_string();
                if !self.errors.iter().any(|known| known.to_string() == message) {
                    self.errors.push(error);
                }
                None
            }
        }
    }

    /// Notes what cannot be checked, and what it waits for.
    fn skip<T>(&mut self, what: &str, needs: &str) -> Option<T> {
        let skipped = format!("{what}: needs {needs}");
        if !self.not_checked.contains(&skipped) {
            self.not_checked.push(skipped);
        }
        None
    }

    /// Builds every part that can be built; the experiment where all can.
    fn build(&mut self, config: &Config, images: usize, seen: &(dyn Fn() + Sync)) -> Option<Experiment> {
        let opened = self.note("device", builder::device(config));
        let device = opened.clone().unwrap_or(Device::Cpu);
        let stream = self.note("stream", builder::stream(config, &device));
        if let Some(stream) = &stream {
            self.note("stream", builder::check_batches(config, stream.as_ref()));
        }
        let builder = match &stream {
            Some(stream) => Some(RunBuilder::new(config, &device, stream.as_ref())),
            None => RunBuilder::without_stream(config, &device),
        };
        let [student, teacher] = [Role::Student, Role::Teacher].map(|role| match &builder {
            Some(builder) => self.note(role.as_str(), builder.backbone(role)),
            None => self.skip(role.as_str(), "the stream's image size"),
        });
        let own_query = config.run.query_source() == QuerySource::Own;
        let [teacher_learner, student_learner] =
            [(Role::Teacher, &teacher), (Role::Student, &student)].map(|(role, own)| {
                let student = if own_query { own } else { &student };
                let (Some(builder), Some(own), Some(student)) = (&builder, own, student) else {
                    return self.skip(&format!("learner of the {}", role.as_str()), "its network");
                };
                // A network's own learner has from `[learner]` what its section leaves out.
                let place = config.run.learner(role).1;
                let section = if self.faulty.contains("learner") { "learner" } else { &place };
                self.note(section, builder.learner(role, own.spec(), student.spec()))
            });
        let distiller = match (&builder, &teacher, &student, &student_learner) {
            (Some(builder), Some(teacher), Some(student), Some(learner)) => {
                let sections = config.run.distillers();
                let mut built = Vec::new();
                for (index, section) in sections.iter().enumerate() {
                    let specs = [teacher.spec(), student.spec()];
                    let distiller = builder.distiller(index, section, specs, learner.as_ref());
                    let distiller = self.note(&config.run.distiller_section(index), distiller);
                    built
                        .extend(distiller.map(|distiller| (section.name.clone(), section.weight, distiller)));
                }
                let all = built.len() == sections.len();
                let stack =
                    all.then(|| DistillerStack::new(built)).and_then(|stack| self.note("distillers", stack));
                if let Some(stack) = &stack {
                    self.note("distillers", builder::check_names(config, learner.as_ref(), stack));
                }
                stack
            }
            _ => self.skip("distiller", "both networks and the student's learner"),
        };
        if let Some(stream) = &stream {
            let data = self.look_at_data(&config.run, stream.as_ref(), images, seen);
            match data {
                Ok(data) => self.data = Some(data),
                Err(error) => self.errors.push(error),
            }
        }
        for (role, backbone) in [(Role::Teacher, &teacher), (Role::Student, &student)] {
            let spec = backbone.as_ref().map(|backbone| backbone.spec().clone());
            self.networks.extend(spec.map(|spec| NetworkReport { role, spec }));
        }
        let teacher = Network { backbone: teacher?, learner: teacher_learner? };
        let student = Network { backbone: student?, learner: student_learner? };
        Some(Experiment::assemble(config, stream?, opened?, teacher, student, distiller?))
    }

    fn look(&mut self, mut config: Config, plan: &Plan<'_>, seen: &(dyn Fn() + Sync)) {
        let all = config.run.stream.disable_verify();
        let images = if all { usize::MAX } else { plan.images };
        let Some(mut experiment) = self.build(&config, images, seen) else {
            return self.not_checked.push("disk, memory and time: need all parts of the run".into());
        };
        let done = self.measure(&mut experiment, &config, plan);
        self.errors.extend(done.err());
        if let Some(Disk { needed, free }) = self.disk
            && free < needed
        {
            let reason = format!("the run needs {} kB, {} kB are free", needed / 1000, free / 1000);
            self.errors.push(Error::RunDir { dir: plan.run_dir.into(), reason });
        }
    }

    fn measure(&mut self, experiment: &mut Experiment, config: &Config, plan: &Plan<'_>) -> Result<()> {
        let (needed, free) = (experiment.disk_bytes(config)?, directory::free_bytes(plan.run_dir)?);
        self.disk = Some(Disk { needed, free });
        if plan.steps > 0 && self.errors.is_empty() {
            let skipped = WARMUP + config.run.stream.prefetched_batches();
            self.time = Some(time(experiment, skipped, plan.steps)?);
            self.peak_memory_bytes = memory::peak_bytes();
        } else {
            let needs = if plan.steps == 0 { "at least one step" } else { "a configuration without errors" };
            self.not_checked.push(format!("memory and time: need {needs}"));
        }
        Ok(())
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
                looked_at: found.checked,
                damaged: found.damaged.len(),
            });
            // Images that the run would leave out do not stop it.
            if !run.stream.skips_damaged() {
                self.errors.extend(found.damaged);
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
pub fn verify(config: &Config, seen: &(dyn Fn() + Sync)) -> Result<Verified> {
    let mut config = config.clone();
    config.run.stream.disable_verify();
    let stream = builder::stream(&config, &builder::device(&config)?)?;
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
        all.looked_at += found.checked;
        all.damaged.extend(found.damaged);
    }
    Ok(all)
}

/// Brings data and weights onto this machine, as a run would, and says which data these are.
pub fn fetch(config: &Config) -> Result<Vec<DataRecord>> {
    let mut config = config.clone();
    config.run.stream.disable_verify();
    let device = builder::device(&config)?;
    let stream = builder::stream(&config, &device)?;
    let builder = RunBuilder::new(&config, &device, stream.as_ref());
    // Both, also where the first cannot be had: what can be is then here.
    let networks = [Role::Student, Role::Teacher].map(|role| builder.backbone(role));
    networks.into_iter().try_for_each(|network| network.map(|_| ()))?;
    Ok(stream.record()?.files)
}

/// Trains and tests for a moment; the experiment is not fit for a run afterwards. Of each, the first `skipped`
/// batches are not timed: what was prepared ahead would come for nothing.
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
        for &role in &trainer.settings.roles {
            trainer.predict(role, &batch.pixels)?.to_device(&Device::Cpu)?;
        }
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

/// The middle one, of a few numbers the upper of the two; NaN of none.
fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
}
