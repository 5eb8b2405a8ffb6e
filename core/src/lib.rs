//! Continual distillation learning: classes arrive task by task, a large frozen vision transformer (the teacher) learns
//! each task through trainable prompts, and a small one (the student) learns it with the teacher's help.
//!
//! This crate contains the framework and no method. The built-in methods are plugins in the crate `cdl-plugins`, and
//! `cdl-cli` is the program `cdl`.
//!
//! # What are you looking for?
//!
//! | to ... | go to |
//! | --- | --- |
//! | write a method | [`prelude`], the four traits in [`traits`], [`register!`], the conformance kit in [`testing`] |
//! | read the training loop | [`train`]: `training_loop.rs`, then `step.rs` for the losses of one batch |
//! | read the network | [`vit`]: `model.rs`; its fast operations are in the crate [`kernels`] |
//! | run an experiment from a program | [`config::Config`], [`run::Experiment`], [`train::Trainer`] |
//! | use a trained student | [`run::export::Predictor`] |
//! | read a run's files | [`run::directory`] |
//! | create a stream of your own images | [`data::ImageStream`] |
//! | load a method at run time | [`registry::dynamic`] |
//!
//! # A method in 30 lines
//!
//! Methods return data (prompts as an [`Injection`](traits::Injection), named [`LossTerm`](traits::LossTerm)s); the
//! [`Trainer`](train::Trainer) applies it. A distiller that matches the student's logits to the teacher's:
//!
//! ```
//! use cdl_core::prelude::*;
//! use schemars::JsonSchema;
//! use serde::{Deserialize, Serialize};
//!
//! /// Settings of `logit_matching`.
//! #[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
//! #[serde(default)]
//! struct LogitMatching {
//!     /// Weight of the distillation term. Cross-entropy has weight 1.
//!     beta: f64,
//! }
//!
//! impl Default for LogitMatching {
//!     fn default() -> Self {
//!         Self { beta: 0.1 }
//!     }
//! }
//!
//! cdl_core::register!(Distiller {
//!     name: "logit_matching",
//!     about: "Mean squared error between the logits of student and teacher",
//!     citation: "Ba and Caruana, NIPS 2014, arXiv:1312.6184",
//!     config: LogitMatching,
//!     build: |config, _context| Ok(Box::new(config) as Box<dyn Distiller>),
//! });
//!
//! impl Distiller for LogitMatching {
//!     fn loss(&self, s: &Output, t: Option<&Output>, _labels: &Tensor, task: &Task) -> Result<Vec<LossTerm>> {
//!         let current = |logits: &Tensor| logits.narrow(1, task.classes.start, task.classes.len()); // (B, classes)
//!         let difference = (current(&s.logits)? - current(&require_teacher(t)?.logits)?)?;
//!         Ok(vec![LossTerm::new("logits", (difference.sqr()?.mean_all()? * self.beta)?)])
//!     }
//! }
//!
//! # fn main() -> Result<()> {
//! // The conformance kit: shapes, gradients against finite differences, determinism, saving and restoring.
//! cdl_core::testing::check_distiller("logit_matching", "")
//! # }
//! ```

pub mod config;
pub mod data;
pub mod error;
pub mod hub;
pub mod metrics;
pub mod nn;
pub mod pickle;
pub mod prelude;
pub mod registry;
pub mod rng;
pub mod run;
pub mod system;
pub mod testing;
pub mod train;
pub mod traits;
pub mod transform;
pub mod vit;

pub use cdl_kernels as kernels;

// The public API contains types of these crates, so plugins must use the same versions.
pub use candle_core;
pub use candle_nn;
pub use image;
pub use inventory;
