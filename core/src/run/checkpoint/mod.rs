//! Format of a checkpoint: the state of a run between two steps. A run that resumes from it has the same results as one
//! without a stop. `checkpoint_folder` writes, numbers and removes the files.
//!
//! A checkpoint is a safetensors file. Its tensors are `teacher/NAME` and `student/NAME`, the state of networks and
//! methods ([`Trainer::state`]), and within a phase `optimizer/NAME` ([`Optimizer::state`]). Its metadata are the
//! version of the format, [`CheckpointMeta`] in JSON, and a SHA-256 of all contents.
//!
//! Random number generators are not stored: each is derived from the run's seed and a label where it is used, so that
//! the position determines initial values, order and augmentation. The position also determines the learning rate.
//!
//! [`Optimizer::state`]: crate::train::Optimizer::state

mod checkpoint_folder;

use std::collections::{BTreeMap, HashMap};

use candle_core::{Device, safetensors::Load};
use safetensors::{SafeTensors, View};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub(crate) use crate::run::checkpoint::checkpoint_folder::Checkpoints;
use crate::{
    error::{Error, Result},
    train::{Accuracies, EpochMetrics, Position, RunState, Snapshot, Trainer},
    traits::{Role, SkippedImages, StateDict, TaskStream},
};

/// Version of the format. Other versions are refused.
const VERSION: &str = "1";
/// Keys of the metadata.
const VERSION_KEY: &str = "cdl_checkpoint";
const ABOUT_KEY: &str = "about";
const SHA256_KEY: &str = "sha256";

/// Contents of a checkpoint except tensors.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CheckpointMeta {
    /// Next step.
    pub position: Position,
    /// Sums over the steps of the current epoch.
    #[serde(rename = "tally")]
    epoch_metrics: EpochMetrics,
    results: Accuracies,
    /// Unreadable images that were skipped.
    #[serde(rename = "left_out")]
    skipped: SkippedImages,
    /// Length of `metrics.jsonl` in bytes. Later lines belong to steps that the resumed run repeats.
    pub metrics_bytes: u64,
    /// SHA-256 of these bytes. Checkpoints of earlier versions have none.
    #[serde(default)]
    pub metrics_sha256: Option<String>,
    /// Seconds of the run so far, without the time between a stop and resuming.
    pub wall_seconds: f64,
    /// Original configuration of the run in TOML.
    pub config: String,
}

/// Reason why a checkpoint cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// The contents have changed since the checkpoint was written.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// The checkpoint was written by a version of this software with another format.
    #[error("it has format {0:?}; this version of cdl reads format {VERSION:?}")]
    OtherVersion(String),
    /// The file cannot be read.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
}

/// State of a run between two steps.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// Contents except tensors.
    pub meta: CheckpointMeta,
    tensors: StateDict,
}

impl Checkpoint {
    /// Creates a checkpoint of a run. The other arguments are fields of [`CheckpointMeta`]; `metrics` are length and
    /// SHA-256 of `metrics.jsonl`.
    pub fn of(
        snapshot: &Snapshot<'_>,
        config: &str,
        metrics: (u64, String),
        wall_seconds: f64,
    ) -> Result<Self> {
        let Snapshot { trainer, stream, state, optimizer } = snapshot;
        let mut tensors = StateDict::default();
        let mut add = |part: &str, state: StateDict| {
            tensors.extend(
                state.iter().map(|(name, tensor)| (format!("{part}/{name}"), tensor.clone())).collect(),
            );
        };
        for role in [Role::Teacher, Role::Student] {
            add(role.as_str(), trainer.state(role)?);
        }
        if let Some(optimizer) = optimizer {
            add("optimizer", optimizer.state()?);
        }
        let meta = CheckpointMeta {
            position: state.position,
            epoch_metrics: state.epoch_metrics.stopped(),
            results: state.results.clone(),
            skipped: stream.image_files().map(|files| files.skipped_images()).unwrap_or_default(),
            metrics_bytes: metrics.0,
            metrics_sha256: Some(metrics.1),
            wall_seconds,
            config: config.into(),
        };
        Ok(Self { meta, tensors })
    }

    /// Serialises the checkpoint.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let fail = |reason: String| Error::State { owner: "checkpoint".into(), reason };
        let meta = serde_json::to_string(&self.meta).map_err(|e| fail(e.to_string()))?;
        let sha256 = digest(&meta, self.tensors.iter());
        let metadata = [(VERSION_KEY, VERSION.into()), (ABOUT_KEY, meta), (SHA256_KEY, sha256)];
        let metadata: HashMap<String, String> = metadata.map(|(key, value)| (key.into(), value)).into();
        safetensors::serialize(self.tensors.iter(), Some(metadata)).map_err(|e| fail(e.to_string()))
    }

    /// Reads a checkpoint from bytes. Its tensors are in main memory.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CheckpointError> {
        let damaged = |reason: &dyn std::fmt::Display| CheckpointError::Damaged(reason.to_string());
        if bytes.is_empty() {
            return Err(damaged(&"it is empty"));
        }
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| damaged(&e))?;
        let metadata = header.metadata().as_ref();
        let read = |key: &str| {
            let value = metadata.and_then(|metadata| metadata.get(key));
            value.ok_or_else(|| damaged(&format!("it is not a checkpoint: its metadata have no `{key}`")))
        };
        let version = read(VERSION_KEY)?;
        if version != VERSION {
            return Err(CheckpointError::OtherVersion(version.clone()));
        }
        let (meta, recorded) = (read(ABOUT_KEY)?, read(SHA256_KEY)?);
        let views = SafeTensors::deserialize(bytes).map_err(|e| damaged(&e))?;
        let found = digest(meta, views.iter());
        if found != *recorded {
            let reason = format!("its contents have SHA-256 {found}, expected {recorded}");
            return Err(damaged(&reason));
        }
        let meta = serde_json::from_str(meta).map_err(|e| damaged(&e))?;
        let load = |(name, view): (&str, safetensors::tensor::TensorView<'_>)| {
            let tensor = view.load(&Device::Cpu).map_err(|e| damaged(&format!("tensor {name}: {e}")))?;
            Ok((name.to_string(), tensor))
        };
        Ok(Self { meta, tensors: views.iter().map(load).collect::<Result<_, CheckpointError>>()? })
    }

    /// Restores networks, methods and stream. Returns the state from which the run resumes.
    ///
    /// # Errors
    /// Tensors that are missing or have another shape; a position outside the run.
    pub fn restore(self, trainer: &mut Trainer, stream: &dyn TaskStream) -> Result<RunState> {
        let CheckpointMeta { position, epoch_metrics, results, skipped, .. } = self.meta;
        // Before a task begins, the state is the end state of the previous task.
        let task = match position == Position::of_task(position.task) {
            true => position.task.saturating_sub(1),
            false => position.task,
        };
        let settings = &trainer.settings;
        let exists = position.phase <= settings.roles.len() && position.epoch < settings.epochs;
        let task = stream.tasks().get(task).filter(|_| exists).ok_or_else(|| Error::State {
            owner: "checkpoint".into(),
            reason: format!("the run has no {}", position.describe(&settings.roles)),
        })?;
        for role in [Role::Teacher, Role::Student] {
            trainer.restore(role, task, &part(&self.tensors, role.as_str()))?;
        }
        if let Some(files) = stream.image_files() {
            files.skip_images(&skipped);
        }
        let optimizer = Some(part(&self.tensors, "optimizer")).filter(|state| state.iter().next().is_some());
        Ok(RunState { position, epoch_metrics, results, optimizer })
    }
}

/// Returns the tensors `name/...`, without the prefix.
fn part(tensors: &StateDict, name: &str) -> StateDict {
    let without_prefix = |full: &str| Some(full.strip_prefix(name)?.strip_prefix('/')?.to_string());
    tensors.iter().filter_map(|(full, tensor)| Some((without_prefix(full)?, tensor.clone()))).collect()
}

/// Returns the SHA-256 of metadata and tensors in hexadecimal digits.
fn digest<'a, V: View>(meta: &str, tensors: impl Iterator<Item = (&'a str, V)>) -> String {
    let mut hash = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    add(meta.as_bytes());
    for (name, tensor) in tensors.collect::<BTreeMap<_, _>>() {
        add(name.as_bytes());
        add(format!("{:?} {:?}", tensor.dtype(), tensor.shape()).as_bytes());
        add(&tensor.data());
    }
    crate::system::hex(&hash.finalize())
}
