//! Export of a trained network as a self-contained folder, which needs neither the run nor its data. [`write()`] writes
//! the folder, [`Predictor`] reads it.
//!
//! ```text
//! model.json                  methods, settings and sizes: a Description
//! classes.json                class names in the order of the logits
//! trained.safetensors         trained prompts and heads that prediction needs
//! network/                    the frozen network: model.safetensors and config.json
//! query/                      the network that computes the query, if prediction uses one and it is not network/
//! SHA256SUMS                  checksums of all files in the format of sha256sum
//! ```

mod description;
mod predictor;
mod write;

use std::{ops::Range, path::Path};

use serde::{Deserialize, Serialize};

pub(crate) use crate::run::export::write::write_network;
pub use crate::run::export::{
    predictor::{MAX_BATCH, Prediction, Predictor, PreprocessedImage},
    write::write,
};
use crate::{
    config::{DistillerSection, Section},
    error::{Error, Result},
    registry::Settings,
    run::PluginRecord,
    system::device::Precision,
    traits::{BackboneSpec, Mode, Portable, Role, Task},
    transform::TransformConfig,
};

/// Version of the format. Other versions are refused.
pub const FORMAT: u64 = 1;

const MODEL: &str = "model.json";
const CLASSES: &str = "classes.json";
const TRAINED: &str = "trained.safetensors";
const NETWORK: &str = "network";
const QUERY: &str = "query";

/// Contents of `model.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Description {
    /// Version of the format.
    pub format: u64,
    /// Version of the software that exported the model.
    pub version: String,
    /// Role of the network in the run.
    pub role: Role,
    /// Classes of each learned task, as ranges of `classes.json`. The model predicts only these classes.
    pub tasks: Vec<Range<usize>>,
    /// Number of tasks of the whole stream.
    pub task_count: usize,
    /// Transform from an image file to pixels in `[0, 1]`. The normalisation of the network follows.
    pub transform: TransformConfig,
    /// Batch size of the run.
    pub batch_size: usize,
    /// The frozen network.
    pub network: FrozenNetwork,
    /// The network that computes the query, if prediction uses a query and `network` does not compute it.
    pub query: Option<FrozenNetwork>,
    /// Width of the query for which the learner was built, if the network that computed the query is not exported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query_width: Option<usize>,
    /// The prompt method.
    pub learner: Section,
    /// Distillation methods that take part in prediction.
    pub distillers: Vec<ExportedDistiller>,
    /// Backbone of the teacher, if `distillers` is not empty.
    pub teacher: Option<BackboneSpec>,
    /// Seed of the run.
    pub seed: u64,
    /// Mode of the run.
    pub mode: Mode,
    /// Precision of the frozen networks. On the CPU, it is always float32.
    #[serde(default)]
    pub precision: Precision,
    /// Plugins loaded at run time that the model needs.
    #[serde(default)]
    pub plugins: Vec<PluginRecord>,
    /// SHA-256 of the classes and images of the run.
    pub split_sha256: String,
}

/// Frozen network in a subfolder of the model.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FrozenNetwork {
    /// Name of the backbone plugin.
    pub plugin: String,
    /// Settings of the backbone in the run. The files named in them are not needed.
    pub settings: Settings,
    /// Sizes, normalisation and origin of the weights.
    pub spec: BackboneSpec,
}

/// Distillation method that takes part in prediction.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExportedDistiller {
    /// Index among the distillers of the run.
    pub index: usize,
    /// Name, weight and settings.
    pub section: DistillerSection,
}

impl Description {
    /// Returns the last learned task, or an error if the description is inconsistent.
    fn task(&self, classes: usize) -> Result<Task, String> {
        let mut seen = 0;
        for range in &self.tasks {
            if range.start != seen || range.end <= range.start || range.end > classes {
                return Err(format!(
                    "`tasks` contains {range:?}; expected consecutive ranges within {classes} classes"
                ));
            }
            seen = range.end;
        }
        // Every task has at least one class.
        if !(self.tasks.len()..=classes).contains(&self.task_count) {
            return Err(format!(
                "`task_count` is {}; expected {} to {classes}",
                self.task_count,
                self.tasks.len()
            ));
        }
        let last = self.tasks.last().ok_or("`tasks` is empty; expected at least one task")?;
        Ok(Task { index: self.tasks.len() - 1, count: self.task_count, classes: last.clone() })
    }

    /// Returns the files of the folder except the list of checksums.
    fn files(&self) -> Vec<String> {
        let mut files = [MODEL, CLASSES, TRAINED].map(String::from).to_vec();
        let folders = [Some(NETWORK), self.query.as_ref().map(|_| QUERY)];
        for folder in folders.into_iter().flatten() {
            files.extend([Portable::WEIGHTS, Portable::CONFIG].map(|file| format!("{folder}/{file}")));
        }
        files
    }
}

fn fail(file: &Path, reason: impl Into<String>) -> Error {
    Error::Export { file: file.into(), reason: reason.into() }
}
