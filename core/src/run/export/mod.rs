//! A trained network as one folder that needs neither the run nor its data: [`write()`] makes it, [`Predictor`] uses it.
//!
//! ```text
//! model.json                  what it is: see Description
//! classes.json                class names in the order of the logits
//! trained.safetensors         prompts and heads: what the run trained, as far as predicting needs it
//! network/                    the frozen network: model.safetensors and config.json
//! query/                      likewise, the network that makes the query, where it is another one and is asked
//! SHA256SUMS                  of all of them, in the form of sha256sum
//! ```

mod description;
mod predictor;
mod write;

use std::{ops::Range, path::Path};

use serde::{Deserialize, Serialize};

pub(crate) use crate::run::export::write::write_network;
pub use crate::run::export::{
    predictor::{LARGEST_BATCH, Prediction, Predictor, PreprocessedImage},
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

/// Version of the format. A newer one is refused.
pub const FORMAT: u64 = 1;

const MODEL: &str = "model.json";
const CLASSES: &str = "classes.json";
const TRAINED: &str = "trained.safetensors";
const NETWORK: &str = "network";
const QUERY: &str = "query";

/// What `model.json` holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Description {
    /// Version of the format.
    pub format: u64,
    /// Version of the software that wrote it.
    pub version: String,
    /// Which of the run's two networks it is.
    pub role: Role,
    /// Classes of the tasks that it has learned, as ranges of `classes.json`; it predicts no others.
    pub tasks: Vec<Range<usize>>,
    /// Tasks of the whole stream.
    pub task_count: usize,
    /// How an image file becomes pixels in `[0, 1]`; the network's normalisation follows.
    pub transform: TransformConfig,
    /// Images in a batch, as the run tested.
    pub batch_size: usize,
    /// The frozen network.
    pub network: FrozenNetwork,
    /// The network that makes the query, where it is not the same and predicting asks for a query.
    pub query: Option<FrozenNetwork>,
    /// Width of the query that the learner was built for, where it is not that of the networks here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query_width: Option<usize>,
    /// The prompt method.
    pub learner: Section,
    /// The distillation methods that have a part in predicting.
    pub distillers: Vec<Kept>,
    /// The teacher's network, where such a method is there.
    pub teacher: Option<BackboneSpec>,
    /// The run's seed.
    pub seed: u64,
    /// The run's mode.
    pub mode: Mode,
    /// Numbers of the frozen networks; on the CPU they are float32 whatever the run had.
    #[serde(default)]
    pub precision: Precision,
    /// Plugins loaded at run time that it needs.
    #[serde(default)]
    pub plugins: Vec<PluginRecord>,
    /// SHA-256 of the run's classes and of the membership of its images.
    pub split_sha256: String,
}

/// A frozen network in a folder of its own.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FrozenNetwork {
    /// The plugin that builds it.
    pub plugin: String,
    /// The settings that the run built it with; files that they name are not needed any more.
    pub settings: Settings,
    /// Sizes, normalisation, and where the run had the weights from.
    pub spec: BackboneSpec,
}

/// A distillation method of the run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kept {
    /// Its place among the run's.
    pub index: usize,
    /// Name, weight and settings.
    pub section: DistillerSection,
}

impl Description {
    /// The last task that it has learned, if what the description says goes together.
    fn task(&self, classes: usize) -> Result<Task, String> {
        let mut seen = 0;
        for range in &self.tasks {
            if range.start != seen || range.end <= range.start || range.end > classes {
                return Err(format!(
                    "`tasks` has {range:?}, expected ranges one after the other within {classes} classes"
                ));
            }
            seen = range.end;
        }
        // Every task has a class.
        if !(self.tasks.len()..=classes).contains(&self.task_count) {
            return Err(format!(
                "`task_count` is {}, expected {} to {classes}",
                self.task_count,
                self.tasks.len()
            ));
        }
        let last = self.tasks.last().ok_or("`tasks` is empty: it has learned nothing")?;
        Ok(Task { index: self.tasks.len() - 1, count: self.task_count, classes: last.clone() })
    }

    /// The files of the folder but for the list of them.
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
