//! The framework of continual distillation learning (CDL): the traits that methods implement, the registry that finds
//! them, frozen vision transformers with differentiable prompts, and the training loop. No method is named here; the
//! built-in ones are plugins in `cdl-plugins`.
//!
//! The four extension points are [`Backbone`], [`Learner`], [`Distiller`] and [`TaskStream`]. Methods return data
//! (an [`Injection`] of prompts, named [`LossTerm`]s); the [`Trainer`] applies it.

pub mod config;
pub mod data;
pub mod error;
pub mod hub;
pub mod metrics;
pub mod nn;
pub mod registry;
pub mod rng;
pub mod run;
pub mod system;
pub mod testing;
pub mod train;
pub mod traits;
pub mod transform;
pub mod unpack;
pub mod vit;

pub use cdl_kernels as ops;
pub use config::{CheckpointConfig, Config, Draft, RecordConfig, RunConfig};
pub use data::*;
pub use error::{Error, Result};
pub use hub::checksum_list as manifest;
pub use metrics::*;
pub use nn as loss;
pub use nn::{LayerNorm, Linear, TokenAlignment};
pub use registry::{catch, dynamic as plugin, ranges as check};
pub use rng::Rng;
pub use run::{
    About, Checkpoint, Experiment, RunRecord, Unusable, directory as run_dir, export,
    export::{Prediction, Predictor, Seen},
    preflight, resume,
};
pub use system::{device, memory, panics, threads};
pub use train::*;
pub use traits::*;
#[doc(hidden)]
pub mod cost {
    pub use crate::{
        train::{Cost, InferenceMacs, TrainingMacs},
        traits::*,
    };
}

// Plugins use these versions, which the types above are made of.
pub use candle_core;
pub use candle_nn;
pub use image;
pub use inventory;
