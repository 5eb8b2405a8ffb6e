//! Builds all parts of a run from its configuration, before anything is written.

use std::collections::BTreeMap;

use candle_core::Device;
use serde::{Deserialize, Serialize};

use crate::{
    config::Config,
    error::Result,
    registry::dynamic,
    rng::Rng,
    run::builder::{self, RunBuilder},
    system::device,
    train::{DistillerStack, Network, TrainSettings, Trainer},
    traits::{BackboneSpec, ClassCount, DataRecord, Normalization, QuerySource, Role, TaskStream},
};

/// A run that is ready to start.
pub struct Experiment {
    /// Stream of tasks.
    pub stream: Box<dyn TaskStream>,
    /// Networks, methods and training settings.
    pub trainer: Trainer,
    /// Device of the networks.
    pub device: Device,
}

/// Record of a run, stored as `run.json`.
#[derive(Debug, Clone, Serialize)]
pub struct RunRecord {
    /// Version of this software.
    pub version: String,
    /// Start time (RFC 3339).
    pub started: String,
    /// Seed of all random numbers.
    pub seed: u64,
    /// `published` or `corrected`.
    pub mode: crate::traits::Mode,
    /// Device of the networks.
    pub device: String,
    /// Kernels of the frozen networks: a set of CPU instructions, or `cuda`. All CPU sets except `portable` give equal
    /// results. The results of `portable` and `cuda` differ in the last digits.
    pub kernels: String,
    /// Quirks of the published code, and whether each was active.
    pub quirks: BTreeMap<String, bool>,
    /// Plugins loaded at run time that the run uses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub plugins: Vec<PluginRecord>,
    /// Backbone of the teacher, with the origin of its weights.
    pub teacher: BackboneSpec,
    /// Backbone of the student, with the origin of its weights.
    pub student: BackboneSpec,
    /// Class names in stream order.
    pub classes: Vec<String>,
    /// Classes of each task.
    pub tasks: Vec<std::ops::Range<usize>>,
    /// Images of each class that the tasks use, in stream order. Empty if the stream does not count them.
    pub class_counts: Vec<ClassCount>,
    /// SHA-256 of the classes, their order and the images of both splits.
    pub split_sha256: String,
    /// Files of the data set, with repository, revision and SHA-256.
    pub data: Vec<DataRecord>,
    /// Tensors trained in the first task.
    pub trained: Vec<TrainedTensor>,
}

/// A plugin that was loaded at run time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginRecord {
    /// Name of the package.
    pub name: String,
    /// Version of the package.
    pub version: String,
    /// SHA-256 of the library.
    pub sha256: String,
}

/// One trainable tensor.
#[derive(Debug, Clone, Serialize)]
pub struct TrainedTensor {
    /// Network that owns the tensor.
    pub role: Role,
    /// Name in the saved models.
    pub name: String,
    /// Shape of the tensor.
    pub shape: Vec<usize>,
}

impl PluginRecord {
    pub(crate) fn of(loaded: dynamic::Loaded) -> Self {
        let dynamic::Manifest { name, version, .. } = loaded.manifest;
        Self { name, version, sha256: loaded.sha256 }
    }
}

impl Experiment {
    /// Builds stream, networks and methods.
    ///
    /// # Errors
    /// Settings that a plugin refuses, with key and origin; a batch size above the number of images of a task; data or
    /// weights that cannot be read; methods that cannot be combined.
    pub fn build(config: &Config) -> Result<Self> {
        let device = builder::device(config)?;
        let stream = builder::stream(config, &device)?;
        builder::check_batches(config, stream.as_ref())?;
        let builder = RunBuilder::new(config, &device, stream.as_ref());
        let student = builder.backbone(Role::Student)?;
        let teacher = builder.backbone(Role::Teacher)?;
        let teacher_learner = builder.learner(Role::Teacher, teacher.spec(), student.spec())?;
        let student_learner = builder.learner(Role::Student, student.spec(), student.spec())?;
        let specs = [teacher.spec(), student.spec()];
        let mut distillers = Vec::new();
        for (index, section) in config.run.distillers().iter().enumerate() {
            let distiller = builder.distiller(index, section, specs, student_learner.as_ref())?;
            distillers.push((section.name.clone(), section.weight, distiller));
        }
        let distiller = DistillerStack::new(distillers)?;
        builder::check_names(config, student_learner.as_ref(), &distiller)?;
        drop(builder);
        let teacher = Network { backbone: teacher, learner: teacher_learner };
        let student = Network { backbone: student, learner: student_learner };
        Ok(Self::assemble(config, stream, device, teacher, student, distiller))
    }

    /// Combines built parts into an experiment.
    pub(crate) fn assemble(
        config: &Config,
        stream: Box<dyn TaskStream>,
        device: Device,
        teacher: Network,
        student: Network,
        distiller: DistillerStack,
    ) -> Self {
        let run = &config.run;
        let settings = TrainSettings {
            epochs: run.epochs,
            batch_size: run.batch_size,
            optimizer: run.optimizer.clone(),
            schedule: run.schedule.clone(),
            mode: run.mode,
            query: run.query_source(),
            roles: run.roles(),
        };
        let (distiller, rng) = (Box::new(distiller), Rng::new(run.seed).derive("tasks"));
        Self { stream, trainer: Trainer { teacher, student, distiller, settings, rng }, device }
    }

    /// Returns the disk space of a run in bytes: the models of all tasks, the checkpoints, and 1 MiB for other files.
    pub fn disk_bytes(&self, config: &Config) -> Result<u64> {
        let parameters = |role: Role| -> Result<usize> {
            Ok(self.trainer.state(role)?.iter().map(|(_, tensor)| tensor.elem_count()).sum())
        };
        let mut models = 0;
        let mut checkpoint = parameters(Role::Teacher)? + parameters(Role::Student)?;
        let mut moments = 0;
        for &role in &self.trainer.settings.roles {
            models += parameters(role)?;
            // No update rule stores more than three values per parameter.
            let vars = self.trainer.trainable(role);
            moments = moments.max(3 * vars.iter().map(|var| var.tensor().elem_count()).sum::<usize>());
        }
        checkpoint += moments;
        // A new checkpoint is complete before an old one is removed.
        let kept = if config.run.checkpoint.off { 0 } else { config.run.checkpoint.keep.saturating_add(1) };
        let all = models * self.stream.tasks().len() + checkpoint.saturating_mul(kept);
        Ok((all.saturating_mul(size_of::<f32>()) as u64).saturating_add(1 << 20))
    }

    /// Returns the quirks of the published code, and whether each is active.
    fn quirks(&self, config: &Config) -> BTreeMap<String, bool> {
        let settings = &self.trainer.settings;
        let repeats = settings.epochs > 1 && settings.schedule.repeats_first_rate(settings.mode);
        let mut quirks = BTreeMap::from([("repeated_first_rate".to_string(), repeats)]);
        quirks.extend(self.stream.quirks().into_iter().map(|(name, on)| (name.to_string(), on)));
        for &role in &settings.roles {
            let network = self.trainer.network(role);
            let unnormalised = network.backbone.spec().normalization == Normalization::NONE;
            quirks.insert(format!("{}/unnormalised_pixels", role.as_str()), unnormalised);
            if role == Role::Teacher {
                quirks.insert("teacher/students_query".into(), settings.query == QuerySource::Student);
            }
            let (learner, _) = config.run.learner(role);
            for (name, on) in network.learner.quirks() {
                quirks.insert(format!("{}/{}/{name}", role.as_str(), learner.name), on);
            }
        }
        quirks
    }

    /// Returns the record of this run.
    pub fn record(&self, config: &Config) -> Result<RunRecord> {
        let trained = config
            .run
            .roles()
            .into_iter()
            .flat_map(|role| self.trainer.trainable(role).into_iter().map(move |var| (role, var)))
            .map(|(role, var)| TrainedTensor { role, shape: var.tensor().dims().to_vec(), name: var.name })
            .collect();
        let stream = self.stream.record()?;
        Ok(RunRecord {
            version: env!("CARGO_PKG_VERSION").into(),
            started: jiff::Timestamp::now().to_string(),
            seed: config.run.seed,
            mode: config.run.mode,
            device: device::describe(&self.device),
            kernels: device::kernels(&self.device).into(),
            quirks: self.quirks(config),
            plugins: config.run.loaded_plugins().into_iter().map(PluginRecord::of).collect(),
            teacher: self.trainer.teacher.backbone.spec().clone(),
            student: self.trainer.student.backbone.spec().clone(),
            classes: self.stream.classes().to_vec(),
            tasks: self.stream.tasks().iter().map(|task| task.classes.clone()).collect(),
            class_counts: stream.class_counts,
            split_sha256: stream.fingerprint,
            data: stream.files,
            trained,
        })
    }
}
