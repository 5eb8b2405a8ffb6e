//! What a configuration says, typed: the keys of a run, sections of plugins, and their defaults.

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

/// A plugin with its settings: `name` and whatever that plugin defines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Section {
    /// The plugin, see `cdl list`.
    pub name: String,
    /// Its settings, see `cdl describe NAME`.
    #[serde(flatten)]
    #[schemars(with = "std::collections::BTreeMap<String, serde_json::Value>")]
    pub settings: Settings,
}

/// A frozen network; the plugin is `vit` unless said otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkSection {
    /// The backbone plugin.
    #[serde(default = "default_backbone")]
    pub name: String,
    /// A prompt method for this network alone. Without a `name`, or with that of `[learner]`, what is not given here
    /// is as there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learner: Option<LearnerOverride>,
    /// Its settings, see `cdl describe NAME`.
    #[serde(flatten)]
    #[schemars(with = "std::collections::BTreeMap<String, serde_json::Value>")]
    pub settings: Settings,
}

/// `[teacher.learner]` or `[student.learner]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LearnerOverride {
    /// The plugin, see `cdl list`; as in `[learner]` if it is not given.
    #[serde(default)]
    pub name: Option<String>,
    /// Its settings, see `cdl describe NAME`.
    #[serde(flatten)]
    #[schemars(with = "std::collections::BTreeMap<String, serde_json::Value>")]
    pub settings: Settings,
}

/// A distillation method with its weight and settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DistillerSection {
    /// The plugin, see `cdl list`.
    pub name: String,
    /// Its terms in the loss are multiplied by this. The weight of the labels stays what the method says, the smallest
    /// of all where there are several.
    #[serde(default = "default_weight")]
    pub weight: f64,
    /// Its settings, see `cdl describe NAME`.
    #[serde(flatten)]
    #[schemars(with = "std::collections::BTreeMap<String, serde_json::Value>")]
    pub settings: Settings,
}

impl Section {
    /// Lets a stream of this section be built without reading every image (`verify`); whether it would have.
    pub(crate) fn put_off_reading(&mut self) -> bool {
        let verify = self.settings.get_mut("verify").filter(|verify| verify.as_bool() == Some(true));
        verify.map(|verify| *verify = toml::Value::Boolean(false)).is_some()
    }

    /// Whether a stream of this section leaves out images that it cannot read (`input.on_error`).
    pub(crate) fn leaves_out_damaged(&self) -> bool {
        lookup(&self.settings, "input.on_error").and_then(toml::Value::as_str) == Some("skip")
    }

    /// Batches that a stream of this section prepares ahead (`input.workers`, `input.prefetch`).
    pub(crate) fn batches_ahead(&self) -> usize {
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

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunConfig {
    /// Seed of everything random: initial values, class order, batch order, augmentation.
    #[serde(default)]
    pub seed: u64,
    /// `published` or `corrected`: defaults of settings in which the published code and the papers differ.
    #[serde(default)]
    pub mode: Mode,
    /// Epochs of each task, for the teacher and for the student.
    #[serde(default = "default_epochs")]
    pub epochs: usize,
    /// Images in a batch; the last incomplete batch of an epoch is dropped in training.
    #[serde(default = "default_batch_size")]
    pub batch_size: usize,
    /// Shared libraries with more methods, made by `cdl plugin build`; relative to the working directory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plugins: Vec<PathBuf>,
    /// `auto` (a GPU if this build and machine have one), `cpu`, `cuda` or `cuda:N`.
    #[serde(default = "default_device")]
    pub device: String,
    /// Numbers of the frozen networks: `float32`, or on a GPU `tf32` or `bf16`.
    #[serde(default)]
    pub precision: Precision,
    /// Whether the teacher is trained and tested; `false` (the student alone) only with a distiller that needs no
    /// teacher.
    #[serde(default = "default_true")]
    pub train_teacher: bool,
    /// Whether the student is trained and tested; `false` is the teacher alone.
    #[serde(default = "default_true")]
    pub train_student: bool,
    /// Whose frozen network makes the teacher's query: the `student`'s (as published; the keys of both networks then
    /// have the student's width) or its `own`. Default: student in mode `published`, own in mode `corrected`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<QuerySource>,
    /// Where images come from and how they are split into tasks.
    pub stream: Section,
    /// The large network.
    pub teacher: NetworkSection,
    /// The small network.
    pub student: NetworkSection,
    /// The prompt method, of teacher and student alike unless `[teacher.learner]` or `[student.learner]` differ.
    pub learner: Section,
    /// The distillation method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distiller: Option<DistillerSection>,
    /// Several distillation methods that work together, instead of `[distiller]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distillers: Option<Vec<DistillerSection>>,
    /// How trainable tensors are updated.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// How the learning rate changes from epoch to epoch.
    #[serde(default)]
    pub schedule: ScheduleConfig,
    /// When the run is saved so that it can go on after a stop.
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
    /// What a run writes down besides results, models and `metrics.jsonl`.
    #[serde(default)]
    pub record: RecordConfig,
}

/// When a run leaves a checkpoint and how many it keeps. None of these values changes what a run computes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CheckpointConfig {
    /// A checkpoint also after every so many steps of an epoch, besides those after each epoch and each task. 0: only
    /// those.
    pub every_steps: usize,
    /// How many checkpoints are kept, the newest ones: at least 1. With 2, a damaged one costs no more than what was
    /// done since the one before. When the run is done none is left.
    pub keep: usize,
    /// Whether no checkpoint is written at all: a run that is stopped then begins anew.
    pub off: bool,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every_steps: 0, keep: 2, off: false }
    }
}

impl CheckpointConfig {
    /// Refuses values that no run can work with.
    pub fn validate(&self) -> Result<()> {
        match self.keep {
            0 => Err(Error::setting("keep", 0, "expected at least 1; `checkpoint.off = true` writes none")),
            _ => Ok(()),
        }
    }
}

/// What a run writes down for other programs. None of these values changes what a run computes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct RecordConfig {
    /// Whether event files for TensorBoard are written into the run directory as it goes on. `cdl report RUN --tensorboard
    /// DIR` makes the same files of any run, also later.
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
    /// The distillation methods, one or several.
    pub fn distillers(&self) -> &[DistillerSection] {
        self.distillers.as_deref().unwrap_or(self.distiller.as_slice())
    }

    /// The section that holds distillation method `index`.
    pub fn distiller_place(&self, index: usize) -> String {
        if self.distillers.is_some() { format!("distillers[{index}]") } else { "distiller".into() }
    }

    /// The frozen network of `role`.
    pub fn network(&self, role: Role) -> &NetworkSection {
        match role {
            Role::Teacher => &self.teacher,
            Role::Student => &self.student,
        }
    }

    /// The prompt method of `role`, and the section that holds it.
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

    /// The network that makes the teacher's query, by the mode if nothing is said.
    pub fn query_source(&self) -> QuerySource {
        self.query.unwrap_or(match self.mode {
            Mode::Published => QuerySource::Student,
            Mode::Corrected => QuerySource::Own,
        })
    }

    /// How many tasks it stops after, where it says so (`stream.max_tasks`).
    pub fn max_tasks(&self) -> Option<usize> {
        let most = self.stream.settings.get("max_tasks")?.as_integer()?;
        usize::try_from(most).ok()
    }

    /// The loaded plugins that it uses.
    pub fn loaded_plugins(&self) -> Vec<dynamic::Loaded> {
        let learners = [Role::Teacher, Role::Student].map(|role| (Kind::Learner, self.learner(role).0.name));
        let mut used = vec![
            (Kind::Stream, self.stream.name.clone()),
            (Kind::Backbone, self.teacher.name.clone()),
            (Kind::Backbone, self.student.name.clone()),
        ];
        used.extend(learners);
        used.extend(self.distillers().iter().map(|section| (Kind::Distiller, section.name.clone())));
        let used_of =
            |loaded: &dynamic::Loaded| used.iter().any(|(kind, name)| loaded.registers(*kind, name));
        dynamic::loaded().into_iter().filter(used_of).collect()
    }

    /// The networks that are trained, in order.
    pub fn roles(&self) -> Vec<Role> {
        let trained = [(Role::Teacher, self.train_teacher), (Role::Student, self.train_student)];
        trained.into_iter().filter(|(_, trained)| *trained).map(|(role, _)| role).collect()
    }
}
