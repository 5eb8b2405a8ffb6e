//! Preflight checks: validate everything that a run needs before it starts, and report all errors at once.
//!
//! Nothing is written except files fetched into the hub's cache, as the run itself would.

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
    traits::{BackboneSpec, ClassCount, DataRecord, EpochKey, Learner, QuerySource, Role, TaskStream},
};

/// Learners of teacher and student, and the distillers, as far as they could be built.
type Methods = (Option<Box<dyn Learner>>, Option<Box<dyn Learner>>, Option<DistillerStack>);

/// Untimed steps of each network before the timed steps, in addition to the steps with prefetched images.
const WARMUP: usize = 2;

/// Scope of the checks.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// Number of timed training steps of each network, and of timed test batches. 0: no measurement.
    pub steps: usize,
    /// Number of training images and of test images of each task to decode. All are decoded if the stream verifies all
    /// images before a run (`verify`).
    pub images: usize,
    /// Run directory.
    pub run_dir: &'a Path,
    /// Whether an existing run may be replaced.
    pub overwrite: bool,
}

/// Results of the checks.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Data, if they were found.
    pub data: Option<Data>,
    /// Networks whose weights were found.
    pub networks: Vec<NetworkReport>,
    /// Disk space for the run directory, if the models could be built.
    pub disk: Option<Disk>,
    /// Measured times.
    pub time: Option<Time>,
    /// Peak resident memory during the measurement, if the system reports it.
    pub peak_memory_bytes: Option<u64>,
    /// Parts that could not be checked, with the missing requirement.
    pub not_checked: Vec<String>,
    /// Errors that would stop the run.
    #[serde(serialize_with = "as_messages")]
    pub errors: Vec<Error>,
    /// Sections and top-level keys with an invalid value. Such a section is built without the value, so that the parts
    /// that depend on it can be checked; further errors of the section may be consequences and are not reported.
    #[serde(skip)]
    invalid_sections: BTreeSet<String>,
}

/// Data of the stream.
#[derive(Debug, Serialize)]
pub struct Data {
    /// Name of the stream.
    pub stream: String,
    /// Number of classes in all tasks.
    pub classes: usize,
    /// Side of the networks' input images in pixels.
    pub image_size: usize,
    /// Images of each task.
    pub tasks: Vec<TaskReport>,
    /// SHA-256 of the split, as in `run.json`.
    pub split_sha256: String,
    /// Files of the data set, as in `run.json`.
    pub files: Vec<DataRecord>,
}

/// Images of a task.
#[derive(Debug, Serialize)]
pub struct TaskReport {
    /// Number of classes.
    pub classes: usize,
    /// Number of training images, including rehearsed images of earlier tasks.
    pub train: usize,
    /// Number of test images.
    pub test: usize,
    /// Number of images checked by decoding them.
    pub looked_at: usize,
    /// Number of images that could not be decoded.
    pub damaged: usize,
}

/// Network whose weights were found.
#[derive(Debug, Serialize)]
pub struct NetworkReport {
    /// Teacher or student.
    pub role: Role,
    /// Sizes, normalisation, and source, file and SHA-256 of the weights.
    #[serde(flatten)]
    pub spec: BackboneSpec,
}

/// Disk space for the run directory.
#[derive(Debug, Serialize)]
pub struct Disk {
    /// Bytes that the run will write.
    pub needed: u64,
    /// Free bytes.
    pub free: u64,
}

/// Times measured on steps of the first task, and the extrapolated time of the whole run.
#[derive(Debug, Serialize)]
pub struct Time {
    /// Training time of each network that is trained.
    pub networks: Vec<NetworkTime>,
    /// Images per second when all trained networks are tested. The reuse of queries by later tests is not considered.
    pub test_images_per_second: f64,
    /// Number of test images of the whole run: after each task, the test images of all tasks so far.
    pub test_images: usize,
    /// Estimated seconds of the whole run.
    pub seconds: f64,
}

/// Training time of a network.
#[derive(Debug, Serialize)]
pub struct NetworkTime {
    /// Teacher or student.
    pub role: Role,
    /// Median seconds of a step, including the wait for its images.
    pub step_seconds: f64,
    /// Number of steps of the whole run.
    pub steps: usize,
}

fn as_messages<S: serde::Serializer>(errors: &[Error], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(errors.iter().map(ToString::to_string))
}

/// Returns the section or top-level key to which a dotted key belongs.
fn section_of(key: &str) -> &str {
    let own_learner = ["teacher.learner", "student.learner"].into_iter().find(|own| key.starts_with(own));
    own_learner.or_else(|| key.split('.').next()).unwrap_or(key)
}

/// Checks everything that a run needs. Calls `progress` after each decoded image.
pub fn check(draft: Draft, plan: &Plan<'_>, progress: &(dyn Fn() + Sync)) -> Report {
    let Draft { config, errors } = draft;
    let invalid_sections = errors.iter().filter_map(Error::key).map(|key| section_of(key).into()).collect();
    let mut report = Report { errors, invalid_sections, ..Report::default() };
    let occupied = directory::check_vacant(plan.run_dir, plan.overwrite).err();
    match config {
        Some(config) => report.check_run(config, plan, progress),
        None => report.not_checked.push("data, networks and methods: need a valid configuration".into()),
    }
    report.errors.extend(occupied);
    report
}

impl Report {
    /// Returns the built part, or records its error and returns `None`. An error that occurs for the learners of both
    /// networks is recorded once.
    fn record<T>(&mut self, section: &str, built: Result<T>) -> Option<T> {
        match built {
            Ok(built) => Some(built),
            Err(_) if self.invalid_sections.contains(section) => self.skip(section, "valid settings"),
            Err(error) => {
                let message = error.to_string();
                if !self.errors.iter().any(|known| known.to_string() == message) {
                    self.errors.push(error);
                }
                None
            }
        }
    }

    /// Records a part that cannot be checked, with the missing requirement.
    fn skip<T>(&mut self, part: &str, needs: &str) -> Option<T> {
        let skipped = format!("{part}: needs {needs}");
        if !self.not_checked.contains(&skipped) {
            self.not_checked.push(skipped);
        }
        None
    }

    /// Builds every part that can be built. Returns the experiment if all parts could be built.
    fn build(&mut self, config: &Config, images: usize, progress: &(dyn Fn() + Sync)) -> Option<Experiment> {
        let opened = self.record("device", builder::device(config));
        let device = opened.clone().unwrap_or(Device::Cpu);
        let stream = self.record("stream", builder::stream(config, &device));
        if let Some(stream) = &stream {
            self.record("stream", builder::check_batches(config, stream.as_ref()));
        }
        let builder = match &stream {
            Some(stream) => Some(RunBuilder::new(config, &device, stream.as_ref())),
            None => RunBuilder::without_stream(config, &device),
        };
        let [student, teacher] = [Role::Student, Role::Teacher].map(|role| match &builder {
            Some(builder) => self.record(role.as_str(), builder.backbone(role)),
            None => self.skip(role.as_str(), "the stream's image size"),
        });
        let [teacher_spec, student_spec] =
            [&teacher, &student].map(|network| network.as_ref().map(|backbone| backbone.spec()));
        let methods = self.build_methods(config, builder.as_ref(), teacher_spec, student_spec);
        if let Some(stream) = &stream {
            let data = self.check_data(&config.run, stream.as_ref(), images, progress);
            match data {
                Ok(data) => self.data = Some(data),
                Err(error) => self.errors.push(error),
            }
        }
        for (role, backbone) in [(Role::Teacher, &teacher), (Role::Student, &student)] {
            let spec = backbone.as_ref().map(|backbone| backbone.spec().clone());
            self.networks.extend(spec.map(|spec| NetworkReport { role, spec }));
        }
        let (teacher_learner, student_learner, distiller) = methods;
        let teacher = Network { backbone: teacher?, learner: teacher_learner? };
        let student = Network { backbone: student?, learner: student_learner? };
        Some(Experiment::assemble(config, stream?, opened?, teacher, student, distiller?))
    }

    /// Builds every learner and distiller that can be built, for networks with these sizes.
    pub(super) fn build_methods(
        &mut self,
        config: &Config,
        builder: Option<&RunBuilder<'_>>,
        teacher: Option<&BackboneSpec>,
        student: Option<&BackboneSpec>,
    ) -> Methods {
        let own_query = config.run.query_source() == QuerySource::Own;
        let [teacher_learner, student_learner] =
            [(Role::Teacher, teacher), (Role::Student, student)].map(|(role, own)| {
                let student = if own_query { own } else { student };
                let (Some(builder), Some(own), Some(student)) = (builder, own, student) else {
                    return self.skip(&format!("learner of the {}", role.as_str()), "its network");
                };
                // A network's own learner inherits from `[learner]` the settings that its section does not set.
                let own_section = config.run.learner(role).1;
                let section =
                    if self.invalid_sections.contains("learner") { "learner" } else { &own_section };
                self.record(section, builder.learner(role, own, student))
            });
        let distiller = match (builder, teacher, student, &student_learner) {
            (Some(builder), Some(teacher), Some(student), Some(learner)) => {
                let sections = config.run.distillers();
                let mut built = Vec::new();
                for (index, section) in sections.iter().enumerate() {
                    let distiller = builder.distiller(index, section, [teacher, student], learner.as_ref());
                    let distiller = self.record(&config.run.distiller_section(index), distiller);
                    built
                        .extend(distiller.map(|distiller| (section.name.clone(), section.weight, distiller)));
                }
                let all = built.len() == sections.len();
                let stack = all
                    .then(|| DistillerStack::new(built))
                    .and_then(|stack| self.record("distillers", stack));
                if let Some(stack) = &stack {
                    self.record("distillers", builder::check_names(config, learner.as_ref(), stack));
                }
                stack
            }
            _ => self.skip("distiller", "both networks and the student's learner"),
        };
        (teacher_learner, student_learner, distiller)
    }

    fn check_run(&mut self, mut config: Config, plan: &Plan<'_>, progress: &(dyn Fn() + Sync)) {
        let all = config.run.stream.disable_verify();
        let images = if all { usize::MAX } else { plan.images };
        let Some(mut experiment) = self.build(&config, images, progress) else {
            return self.not_checked.push("disk, memory and time: need all parts of the run".into());
        };
        let measured = self.measure(&mut experiment, &config, plan);
        self.errors.extend(measured.err());
        if let Some(Disk { needed, free }) = self.disk
            && free < needed
        {
            let reason =
                format!("the run needs {} kB of disk space, {} kB are free", needed / 1000, free / 1000);
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

    fn check_data(
        &mut self,
        run: &RunConfig,
        stream: &dyn TaskStream,
        images: usize,
        progress: &(dyn Fn() + Sync),
    ) -> Result<Data> {
        let tasks = self.decode_images(run, stream, images, progress);
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

    /// Decodes `images` training images and test images of each task, and records the errors of damaged ones.
    pub(super) fn decode_images(
        &mut self,
        run: &RunConfig,
        stream: &dyn TaskStream,
        images: usize,
        progress: &(dyn Fn() + Sync),
    ) -> Vec<TaskReport> {
        let mut tasks = Vec::new();
        for task in stream.tasks() {
            let files = stream.image_files();
            let found = files.map(|files| files.inspect(task.index, images, progress)).unwrap_or_default();
            tasks.push(TaskReport {
                classes: task.classes.len(),
                train: stream.train_count(task.index),
                test: stream.test_count(task.index),
                looked_at: found.checked,
                damaged: found.damaged.len(),
            });
            // Images that the run would skip are not errors.
            if !run.stream.skips_damaged() {
                self.errors.extend(found.damaged);
            }
        }
        tasks
    }
}

/// Result of checking all images of a configuration.
#[derive(Debug)]
pub struct Verified {
    /// Number of images of each class.
    pub classes: Vec<ClassCount>,
    /// Number of images checked, including damaged ones.
    pub looked_at: usize,
    /// Number of files of the data set.
    pub files: usize,
    /// Errors of the damaged images.
    pub damaged: Vec<Error>,
}

/// Decodes every image that a run would use. Calls `progress` after each image.
pub fn verify(config: &Config, progress: &(dyn Fn() + Sync)) -> Result<Verified> {
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
        let found = files.inspect(task.index, usize::MAX, progress);
        all.looked_at += found.checked;
        all.damaged.extend(found.damaged);
    }
    Ok(all)
}

/// Fetches data and weights into the hub's cache, as a run would. Returns the records of the data.
pub fn fetch(config: &Config) -> Result<Vec<DataRecord>> {
    let mut config = config.clone();
    config.run.stream.disable_verify();
    let device = builder::device(&config)?;
    let stream = builder::stream(&config, &device)?;
    let builder = RunBuilder::new(&config, &device, stream.as_ref());
    // Both networks are fetched, even if the first one fails.
    let networks = [Role::Student, Role::Teacher].map(|role| builder.backbone(role));
    networks.into_iter().try_for_each(|network| network.map(|_| ()))?;
    Ok(stream.record()?.files)
}

/// Measures training and test steps. The experiment cannot be used for a run afterwards. The first `skipped` batches
/// are not timed: their images are prefetched, so that loading would appear to take no time.
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
        let steps = stream.tasks().iter().map(|task| trainer.settings.epochs * per_epoch(task.index)).sum();
        networks.push(NetworkTime {
            role,
            step_seconds: median(seconds.into_iter().skip(skipped).collect()),
            steps,
        });
    }
    let mut rates = Vec::new();
    // Enough passes for all batches. A new pass starts without prefetched images.
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

/// Returns the median, for an even count the larger of the two middle values. NaN for an empty list.
fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
}
