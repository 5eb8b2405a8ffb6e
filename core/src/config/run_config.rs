//! Types of a configuration: the keys of a run, the sections of plugins, and their defaults.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    data::InputSettings,
    error::{Error, Result},
    registry::{Kind, Settings, dynamic, lookup},
    system::device::Precision,
    train::{OptimizerConfig, ScheduleConfig},
    traits::{Mode, QuerySource, Role},
};

/// A plugin with its settings: `name` and the keys that the plugin defines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Section {
    /// Name of the plugin, see `cdl list`.
    pub name: String,
    /// Settings of the plugin, see `cdl describe NAME`.
    #[serde(flatten)]
    #[schemars(with = "std::collections::BTreeMap<String, serde_json::Value>")]
    pub settings: Settings,
}

/// A frozen network. The default plugin is `vit`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkSection {
    /// Name of the backbone plugin.
    #[serde(default = "default_backbone")]
    pub name: String,
    /// A prompt method for this network only. Without a `name`, or with the name of `[learner]`, settings that
    /// are not given here are inherited from `[learner]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learner: Option<LearnerOverride>,
    /// Settings of the plugin, see `cdl describe NAME`.
    #[serde(flatten)]
    #[schemars(with = "std::collections::BTreeMap<String, serde_json::Value>")]
    pub settings: Settings,
}

/// `[teacher.learner]` or `[student.learner]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LearnerOverride {
    /// Name of the plugin, see `cdl list`. Default: the name in `[learner]`.
    #[serde(default)]
    pub name: Option<String>,
    /// Settings of the plugin, see `cdl describe NAME`.
    #[serde(flatten)]
    #[schemars(with = "std::collections::BTreeMap<String, serde_json::Value>")]
    pub settings: Settings,
}

/// A distillation method with its weight and settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DistillerSection {
    /// Name of the plugin, see `cdl list`.
    pub name: String,
    /// Factor of the loss terms of this method. It does not change the weight of cross-entropy, which the method sets.
    /// With several methods, the smallest weight of cross-entropy applies.
    #[serde(default = "default_weight")]
    pub weight: f64,
    /// Settings of the plugin, see `cdl describe NAME`.
    #[serde(flatten)]
    #[schemars(with = "std::collections::BTreeMap<String, serde_json::Value>")]
    pub settings: Settings,
}

impl Section {
    /// Sets `verify` to false, so that building the stream does not read every image. Returns whether it was true.
    pub(crate) fn disable_verify(&mut self) -> bool {
        let verify = self.settings.get_mut("verify").filter(|verify| verify.as_bool() == Some(true));
        verify.map(|verify| *verify = toml::Value::Boolean(false)).is_some()
    }

    /// Returns whether a stream of this section skips unreadable images (`input.on_error`).
    pub(crate) fn skips_damaged(&self) -> bool {
        lookup(&self.settings, "input.on_error").and_then(toml::Value::as_str) == Some("skip")
    }

    /// Returns the number of batches that a stream of this section prefetches (`input.workers`, `input.prefetch`).
    pub(crate) fn prefetched_batches(&self) -> usize {
        let input = self.settings.get("input").cloned();
        let input = input.and_then(|input| input.try_into().ok()).unwrap_or_else(InputSettings::default);
        if input.workers == 0 { 0 } else { input.prefetch }
    }
}

fn default_weight() -> f64 {
    1.0
}

fn default_backbone() -> String {
    "vit".into()
}

/// Configuration of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunConfig {
    /// Seed of all random numbers: initial values, class order, batch order, augmentation.
    #[serde(default)]
    pub seed: u64,
    /// `published` or `corrected`: the defaults of settings in which the published code differs from the papers.
    #[serde(default)]
    pub mode: Mode,
    /// Epochs of each task, for the teacher and for the student.
    #[serde(default = "default_epochs")]
    pub epochs: usize,
    /// Images in a batch. In training, the last incomplete batch of an epoch is dropped.
    #[serde(default = "default_batch_size")]
    pub batch_size: usize,
    /// Shared libraries with more methods, made by `cdl plugin build`. Paths are relative to the configuration file, with
    /// `--set` to the working directory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plugins: Vec<PathBuf>,
    /// `auto` (a GPU if there is one and this build supports it), `cpu`, `cuda` or `cuda:N`.
    #[serde(default = "default_device")]
    pub device: String,
    /// Precision of the frozen networks: `float32`, or on a GPU `tf32` or `bf16`.
    #[serde(default)]
    pub precision: Precision,
    /// Whether the teacher is trained and tested. `false` (student alone) requires a distiller that needs no teacher.
    #[serde(default = "default_true")]
    pub train_teacher: bool,
    /// Whether the student is trained and tested. `false` trains the teacher alone.
    #[serde(default = "default_true")]
    pub train_student: bool,
    /// Frozen network that computes the teacher's query: the `student`'s (as published; the keys of both networks then
    /// have the student's width) or its `own`. Default: student in mode `published`, own in mode `corrected`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<QuerySource>,
    /// Source of the images, and their split into tasks.
    pub stream: Section,
    /// The large frozen network, which learns each task first.
    pub teacher: NetworkSection,
    /// The small frozen network, which learns each task with the teacher's help.
    pub student: NetworkSection,
    /// The prompt method of teacher and student, unless `[teacher.learner]` or `[student.learner]` is given.
    pub learner: Section,
    /// The distillation method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distiller: Option<DistillerSection>,
    /// Several distillation methods in place of `[distiller]`. Their loss terms are summed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distillers: Option<Vec<DistillerSection>>,
    /// Update rule of the trainable parameters.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// Learning rate of each epoch.
    #[serde(default)]
    pub schedule: ScheduleConfig,
    /// Checkpoints, from which a stopped run resumes.
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
    /// Records besides results, models and `metrics.jsonl`.
    #[serde(default)]
    pub record: RecordConfig,
}

/// Intervals of checkpoints, and the number of checkpoints kept. None of these values changes the results of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CheckpointConfig {
    /// Steps between checkpoints within an epoch. 0: only after each epoch and each task.
    pub every_steps: usize,
    /// Number of newest checkpoints that are kept, at least 1. With 2, a run whose last checkpoint is damaged
    /// resumes from the checkpoint before. A finished run has no checkpoints.
    pub keep: usize,
    /// Whether checkpoints are disabled. A stopped run then starts again from the beginning.
    pub off: bool,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every_steps: 0, keep: 2, off: false }
    }
}

impl CheckpointConfig {
    /// Checks the ranges of all values.
    pub fn validate(&self) -> Result<()> {
        match self.keep {
            0 => Err(Error::setting(
                "keep",
                0,
                "expected at least 1; `checkpoint.off = true` disables checkpoints",
            )),
            _ => Ok(()),
        }
    }
}

/// Records for other programs. None of these values changes the results of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct RecordConfig {
    /// Whether to write TensorBoard event files into the run directory during the run. `cdl report RUN
    /// --tensorboard DIR` writes the same files for any run afterwards.
    pub tensorboard: bool,
}

fn default_epochs() -> usize {
    20
}
fn default_batch_size() -> usize {
    64
}
fn default_device() -> String {
    "auto".into()
}
fn default_true() -> bool {
    true
}

impl RunConfig {
    /// Returns the distillation methods, one or several.
    pub fn distillers(&self) -> &[DistillerSection] {
        self.distillers.as_deref().unwrap_or(self.distiller.as_slice())
    }

    /// Returns the section of distillation method `index`, for messages: `distiller` or `distillers[index]`.
    pub fn distiller_section(&self, index: usize) -> String {
        if self.distillers.is_some() { format!("distillers[{index}]") } else { "distiller".into() }
    }

    /// Returns the frozen network of `role`.
    pub fn network(&self, role: Role) -> &NetworkSection {
        match role {
            Role::Teacher => &self.teacher,
            Role::Student => &self.student,
        }
    }

    /// Returns the prompt method of `role` and the name of its section.
    pub fn learner(&self, role: Role) -> (Section, String) {
        let Some(own) = &self.network(role).learner else { return (self.learner.clone(), "learner".into()) };
        let mut section = match &own.name {
            Some(name) if *name != self.learner.name => {
                Section { name: name.clone(), settings: Settings::new() }
            }
            _ => self.learner.clone(),
        };
        section.settings.extend(own.settings.clone());
        (section, format!("{}.learner", role.as_str()))
    }

    /// Returns the network that computes the teacher's query. The default depends on the mode.
    pub fn query_source(&self) -> QuerySource {
        self.query.unwrap_or(match self.mode {
            Mode::Published => QuerySource::Student,
            Mode::Corrected => QuerySource::Own,
        })
    }

    /// Returns the number of tasks after which the run stops (`stream.max_tasks`), if it is set.
    pub fn max_tasks(&self) -> Option<usize> {
        let most = self.stream.settings.get("max_tasks")?.as_integer()?;
        usize::try_from(most).ok()
    }

    /// Returns kind and name of every method that the run uses, its networks and its stream included.
    pub fn methods(&self) -> Vec<(Kind, String)> {
        let learners = [Role::Teacher, Role::Student].map(|role| (Kind::Learner, self.learner(role).0.name));
        let mut used = vec![
            (Kind::Stream, self.stream.name.clone()),
            (Kind::Backbone, self.teacher.name.clone()),
            (Kind::Backbone, self.student.name.clone()),
        ];
        used.extend(learners);
        used.extend(self.distillers().iter().map(|section| (Kind::Distiller, section.name.clone())));
        used
    }

    /// Returns the plugins loaded at run time that the run uses.
    pub fn loaded_plugins(&self) -> Vec<dynamic::Loaded> {
        let used = self.methods();
        let is_used =
            |loaded: &dynamic::Loaded| used.iter().any(|(kind, name)| loaded.registers(*kind, name));
        dynamic::loaded().into_iter().filter(is_used).collect()
    }

    /// Returns the networks that are trained, in order.
    pub fn roles(&self) -> Vec<Role> {
        let trained = [(Role::Teacher, self.train_teacher), (Role::Student, self.train_student)];
        trained.into_iter().filter(|(_, trained)| *trained).map(|(role, _)| role).collect()
    }
}
