//! Continual distillation learning: classes arrive task by task, a large frozen vision transformer (the teacher) learns
//! each task through trainable prompts, and a small one (the student) learns it with the teacher's help.
//!
//! This crate holds the framework; no method is named here. The built-in methods are plugins in `cdl-plugins`, and the
//! program `cdl` is `cdl-cli`.
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
//! | make a stream of your own images | [`data::ImageStream`] |
//! | load a method at run time | [`registry::dynamic`] |
//!
//! # A method in thirty lines
//!
//! Methods return data (prompts as an [`Injection`](traits::Injection), named [`LossTerm`](traits::LossTerm)s) and the
//! [`Trainer`](train::Trainer) applies it. A distiller that matches the student's logits to the teacher's:
//!
//! ```
//! use cdl_core::prelude::*;
//!
//! /// Settings of `logit_mse`.
//! #[derive(Debug, Clone, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
//! #[serde(default)]
//! struct LogitMse {
//!     /// Weight of the distillation term. Cross-entropy is weighted by `1 - alpha`.
//!     alpha: f64,
//! }
//!
//! impl Default for LogitMse {
//!     fn default() -> Self {
//!         Self { alpha: 0.5 }
//!     }
//! }
//!
//! register!(Distiller {
//!     name: "logit_mse",
//!     about: "Squared distance between the logits of student and teacher",
//!     citation: "Ba and Caruana, NeurIPS 2014, arXiv:1312.6184",
//!     config: LogitMse,
//!     build: |config: LogitMse, _context: &DistillerContext<'_>| {
//!         ranges::fraction("alpha", config.alpha)?;
//!         Ok(Box::new(config) as Box<dyn Distiller>)
//!     },
//! });
//!
//! impl Distiller for LogitMse {
//!     fn cross_entropy_weight(&self) -> f64 {
//!         1.0 - self.alpha
//!     }
//!
//!     fn loss(&self, s: &Output, t: Option<&Output>, _labels: &Tensor, task: &Task) -> Result<Vec<LossTerm>> {
//!         let current = |logits: &Tensor| logits.narrow(1, task.classes.start, task.classes.len()); // (B, C of the task)
//!         let distance = (current(&s.logits)? - current(&require_teacher(t)?.logits)?)?;
//!         Ok(vec![LossTerm::new("logit_mse", (distance.sqr()?.mean_all()? * self.alpha)?)])
//!     }
//! }
//!
//! // Shapes, gradients against finite differences, determinism, saving and restoring:
//! # fn main() -> Result<()> {
//! cdl_core::testing::check_distiller("logit_mse", "alpha = 0.3")
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

// Plugins use these versions, which the types above are made of.
pub use candle_core;
pub use candle_nn;
pub use image;
pub use inventory;
