//! A run: building it from a configuration, preflight checks, run directory, checkpoints, resuming, export.

pub(crate) mod builder;
pub mod checkpoint;
pub mod directory;
mod experiment;
pub mod export;
pub mod joint_preflight;
pub mod preflight;
pub mod resume_check;

pub(crate) use checkpoint::Checkpoints;
pub use checkpoint::{Checkpoint, CheckpointError, CheckpointMeta};
pub use experiment::{Experiment, PluginRecord, RunRecord, TrainedTensor};
