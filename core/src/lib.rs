//! The framework of continual distillation learning (CDL): the traits that methods implement, the registry that finds
//! them, frozen vision transformers with differentiable prompts, and the training loop. No method is named here; the
//! built-in ones are plugins in `cdl-plugins`.
//!
//! The four extension points are [`Backbone`], [`Learner`], [`Distiller`] and [`TaskStream`]. Methods return data
//! (an [`Injection`] of prompts, named [`LossTerm`]s); the [`Trainer`] applies it.

mod align;
mod atomic;
mod backbone;
mod by_role;
pub mod check;
mod checkpoint;
pub mod config;
mod confusion;
pub mod cost;
pub mod device;
mod distiller;
pub mod error;
mod eval;
mod experiment;
pub mod export;
mod guard;
pub mod hub;
mod injection;
mod layers;
mod learner;
pub mod loss;
pub mod manifest;
pub mod memory;
mod metrics;
mod network;
pub mod ops;
mod optim;
pub mod panics;
pub mod plugin;
mod position;
pub mod preflight;
mod prompt_use;
mod query;
pub mod registry;
pub mod resume;
mod rng;
pub mod run_dir;
mod schedule;
mod stack;
mod state;
mod stream;
mod tally;
pub mod testing;
pub mod threads;
mod trainer;
pub mod transform;
pub mod vit;

pub use align::TokenAlignment;
pub use backbone::{Backbone, BackboneContext, BackboneSpec, Features, Normalization, Portable, Taps};
pub use by_role::ByRole;
pub use checkpoint::{About, Checkpoint, CheckpointConfig, Unusable};
pub use config::{Config, Draft, Mode, RecordConfig, RunConfig};
pub use confusion::Confusion;
pub use distiller::{Distiller, DistillerContext, DistillerTaps, LossTerm, Output, require_teacher};
pub use error::{Error, Result};
pub use eval::{Accuracies, Confusions, Tested, Tester};
pub use experiment::{Experiment, RunRecord};
pub use export::{Prediction, Predictor, Seen};
pub use guard::catch;
pub use injection::{BlockInjection, Injection, Kv};
pub use layers::{LayerNorm, Linear};
pub use learner::{Head, Learner, LearnerContext, NamedVar, Pass, Quirk, Role};
pub use metrics::{AccuracyMatrix, DEFINITIONS, Definition, Summary};
pub use network::Network;
pub use optim::{Optimizer, OptimizerConfig};
pub use position::{Moment, Position, RunState};
pub use prompt_use::{PoolUse, Selection, Taken, UseTable};
pub use query::{Query, QuerySource};
pub use rng::Rng;
pub use schedule::ScheduleConfig;
pub use stack::Stack;
pub use state::StateDict;
pub use stream::{
    Batch, Batches, ClassCount, ClassOrder, DataRecord, EpochKey, Hashed, ImageSet, ImageStream,
    InputSettings, Inspection, LeftOut, OnError, Skipped, StreamContext, Task, TaskSettings, TaskStream,
};
pub use tally::{EpochReport, Tally};
pub use trainer::{BatchLoss, Event, TrainSettings, Trainer};

// Plugins use these versions, which the types above are made of.
pub use candle_core;
pub use candle_nn;
pub use image;
pub use inventory;

/// Lower-case hexadecimal digits of `bytes`.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
