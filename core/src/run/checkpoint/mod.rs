//! Format of a checkpoint: all that a run needs to go on between two steps as if it had never been stopped.
//! `checkpoint_folder` writes, numbers and removes the files.
//!
//! A checkpoint is a safetensors file. Its tensors are `teacher/NAME` and `student/NAME`, everything that networks and
//! methods have learned ([`Trainer::state`]), and in the middle of a phase `optimizer/NAME` ([`Optimizer::state`]). Its
//! metadata are the format's version, [`CheckpointMeta`] in JSON, and a SHA-256 over all of it.
//!
//! No generator of random numbers is part of it: each is derived from the run's seed and a label where it is used and
//! outlives nothing, so that initial values, order and augmentation follow from the position. So does the learning
//! rate.
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

/// Version of the format. Another one is refused.
const VERSION: &str = "1";
/// Keys of the metadata.
const VERSION_KEY: &str = "cdl_checkpoint";
const ABOUT_KEY: &str = "about";
const SHA256_KEY: &str = "sha256";

/// Contents of a checkpoint besides tensors.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CheckpointMeta {
    /// Step that comes next.
    pub position: Position,
    tally: EpochMetrics,
    results: Accuracies,
    /// Images that could not be read.
    left_out: SkippedImages,
    /// Length of `metrics.jsonl`; what follows is of steps that will be done again.
    pub metrics_bytes: u64,
    /// Seconds that the run had taken, without those between a stop and going on.
    pub wall_seconds: f64,
    /// The run's whole configuration in TOML.
    pub config: String,
}

/// Why a checkpoint cannot be taken up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// Its bytes are not those that were written.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// Another version of this software wrote it.
    #[error("it has format {0:?}, and this version of cdl reads {VERSION:?}")]
    Foreign(String),
    /// The file is there and cannot be read.
    #[error("it cannot be read: {0}")]
    Unread(String),
}

/// A run between two of its steps.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// Everything but tensors.
    pub meta: CheckpointMeta,
    tensors: StateDict,
}

impl Checkpoint {
    /// Checkpoint of a run as it is now; see [`CheckpointMeta`] for the other values.
    pub fn of(moment: &Snapshot<'_>, config: &str, metrics_bytes: u64, wall_seconds: f64) -> Result<Self> {
        let Snapshot { trainer, stream, state, optimizer } = moment;
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
            tally: state.tally.stopped(),
            results: state.results.clone(),
            left_out: stream.image_files().map(|files| files.skipped_images()).unwrap_or_default(),
            metrics_bytes,
            wall_seconds,
            config: config.into(),
        };
        Ok(Self { meta, tensors })
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let fail = |reason: String| Error::State { owner: "checkpoint".into(), reason };
        let meta = serde_json::to_string(&self.meta).map_err(|e| fail(e.to_string()))?;
        let sha256 = digest(&meta, self.tensors.iter());
        let metadata = [(VERSION_KEY, VERSION.into()), (ABOUT_KEY, meta), (SHA256_KEY, sha256)];
        let metadata: HashMap<String, String> = metadata.map(|(key, value)| (key.into(), value)).into();
        safetensors::serialize(self.tensors.iter(), Some(metadata)).map_err(|e| fail(e.to_string()))
    }

    /// Reads a file's bytes, tensors into the main memory.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Unusable> {
        let damaged = |reason: &dyn std::fmt::Display| Unusable::Damaged(reason.to_string());
        if bytes.is_empty() {
            return Err(damaged(&"it is empty"));
        }
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| damaged(&e))?;
        let metadata = header.metadata().as_ref();
        let read = |key: &str| {
            let value = metadata.and_then(|metadata| metadata.get(key));
            value.ok_or_else(|| damaged(&format!("it is no checkpoint: its metadata have no `{key}`")))
        };
        let version = read(VERSION_KEY)?;
        if version != VERSION {
            return Err(Unusable::Foreign(version.clone()));
        }
        let (meta, recorded) = (read(ABOUT_KEY)?, read(SHA256_KEY)?);
        let views = SafeTensors::deserialize(bytes).map_err(|e| damaged(&e))?;
        let found = digest(meta, views.iter());
        if found != *recorded {
            let reason = format!("its content has SHA-256 {found}, it was written with {recorded}");
            return Err(damaged(&reason));
        }
        let meta = serde_json::from_str(meta).map_err(|e| damaged(&e))?;
        let load = |(name, view): (&str, safetensors::tensor::TensorView<'_>)| {
            let tensor = view.load(&Device::Cpu).map_err(|e| damaged(&format!("tensor {name}: {e}")))?;
            Ok((name.to_string(), tensor))
        };
        Ok(Self { meta, tensors: views.iter().map(load).collect::<Result<_, Unusable>>()? })
    }

    /// Brings networks, methods and stream to where they were, and says how to go on.
    ///
    /// # Errors
    /// Tensors that are missing or have another shape, by name; a position that the run does not have.
    pub fn restore(self, trainer: &mut Trainer, stream: &dyn TaskStream) -> Result<RunState> {
        let CheckpointMeta { position, tally, results, left_out, .. } = self.meta;
        // Before a task everything is as the task before has left it.
        let task = match position == Position::of_task(position.task) {
            true => position.task.saturating_sub(1),
            false => position.task,
        };
        let settings = &trainer.settings;
        let inside = position.phase <= settings.roles.len() && position.epoch < settings.epochs;
        let task = stream.tasks().get(task).filter(|_| inside).ok_or_else(|| Error::State {
            owner: "checkpoint".into(),
            reason: format!("the run has no {}", position.describe(&settings.roles)),
        })?;
        for role in [Role::Teacher, Role::Student] {
            trainer.restore(role, task, &part(&self.tensors, role.as_str()))?;
        }
        if let Some(files) = stream.image_files() {
            files.skip_images(&left_out);
        }
        let optimizer = Some(part(&self.tensors, "optimizer")).filter(|state| state.iter().next().is_some());
        Ok(RunState { position, tally, results, optimizer })
    }
}

/// The tensors called `name/...`, without that.
fn part(tensors: &StateDict, name: &str) -> StateDict {
    let of_part = |full: &str| Some(full.strip_prefix(name)?.strip_prefix('/')?.to_string());
    tensors.iter().filter_map(|(full, tensor)| Some((of_part(full)?, tensor.clone()))).collect()
}

/// SHA-256 over everything that a checkpoint holds, in hexadecimal digits.
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
