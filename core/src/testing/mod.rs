//! Conformance kit: checks, in one line, that a plugin fulfils the contract of its trait.
//!
//! ```
//! # use cdl_core::prelude::*;
//! # use schemars::JsonSchema;
//! # use serde::{Deserialize, Serialize};
//! #
//! # /// Settings of `my_method`.
//! # #[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
//! # #[serde(default)]
//! # struct MyMethod {
//! #     /// Weight of the distillation term.
//! #     beta: f64,
//! # }
//! #
//! # impl Distiller for MyMethod {
//! #     fn loss(&self, s: &Output, t: Option<&Output>, _: &Tensor, task: &Task) -> Result<Vec<LossTerm>> {
//! #         let current = |logits: &Tensor| logits.narrow(1, task.classes.start, task.classes.len());
//! #         let difference = (current(&s.logits)? - current(&require_teacher(t)?.logits)?)?;
//! #         Ok(vec![LossTerm::new("logits", (difference.sqr()?.mean_all()? * self.beta)?)])
//! #     }
//! # }
//! #
//! # cdl_core::register!(Distiller {
//! #     name: "my_method",
//! #     about: "Mean squared error between the logits of student and teacher",
//! #     citation: "none",
//! #     config: MyMethod,
//! #     build: |config, _context| Ok(Box::new(config) as Box<dyn Distiller>),
//! # });
//! #
//! # fn main() -> Result<()> {
//! // In a test, next to the method that is registered as `my_method`, with settings in TOML:
//! cdl_core::testing::check_distiller("my_method", "beta = 0.5")
//! # }
//! ```
//!
//! [`check_backbone`] and [`check_stream`] document their own checks. A learner or distiller runs on a [`TestBed`]: two
//! tiny random vision transformers and a stream of random pixels in three tasks. The checks are:
//!
//! - Every setting has a doc comment, and unknown settings are refused.
//! - All returned tensors have valid shapes, in all passes, with networks of several sizes, both modes, both sources of
//!   the query, and all classes learned at once as with rehearsal.
//! - The reported selections of prompts from pools are valid for every image.
//! - Gradients agree with finite differences of the loss, in the first task.
//! - Every trainable tensor gets a gradient and changes, and nothing else changes.
//! - The seed determines all results.
//! - A state saved in the middle of a task or at its end can be restored, and an incomplete state is refused.
//! - Evaluation changes nothing.
//!
//! The first violation is returned as [`Error::ContractViolation`]. A method that stops gradients on purpose disables finite
//! differences by [`Conformance::finite_differences`].

mod backbone_checks;
mod method_checks;
mod stream_checks;
mod test_bed;

use candle_core::{DType, Tensor};
use sha2::{Digest, Sha256};

pub use crate::testing::{
    backbone_checks::check_backbone,
    stream_checks::check_stream,
    test_bed::{Noise, Shape, TestBed},
};
use crate::{
    error::{Error, Result},
    registry::{self, Kind, Settings},
    testing::{
        method_checks::Check,
        test_bed::{ROLES, distiller_trainer, learner_trainer},
    },
    train::{DistillerStack, Optimizer, Trainer},
    traits::{Role, TaskStream},
};

/// Runs all checks of [`Conformance`] on the learner registered as `name`, with `settings` in TOML.
///
/// # Errors
/// The first violation, as [`Error::ContractViolation`], and errors of the learner.
pub fn check_learner(name: &str, settings: &str) -> Result<()> {
    Conformance { settings, ..Default::default() }.learner(name)
}

/// Runs all checks of [`Conformance`] on the distiller registered as `name`, with `settings` in TOML.
///
/// # Errors
/// The first violation, as [`Error::ContractViolation`], and errors of the distiller.
pub fn check_distiller(name: &str, settings: &str) -> Result<()> {
    Conformance { settings, ..Default::default() }.distiller(name)
}

/// Checks a registered learner together with a registered distiller, each given as `(name, settings in TOML)`: every
/// trainable tensor gets a gradient and changes, nothing else changes, a saved state can be restored, and evaluation
/// changes nothing.
pub fn check_pair(learner: (&str, &str), distiller: (&str, &str)) -> Result<()> {
    let settings = [
        read_settings(Kind::Learner, learner.0, learner.1)?,
        read_settings(Kind::Distiller, distiller.0, distiller.1)?,
    ];
    let build = |bed: &TestBed| bed.trainer_of((learner.0, &settings[0]), (distiller.0, &settings[1]));
    let check = Check { plugin: format!("`{}` with `{}`", learner.0, distiller.0), build: &build };
    check.only_trainable_tensors_change(TestBed::new(3)?)?;
    check.saved_state_is_restored()?;
    check.evaluation_changes_nothing()
}

/// Checks of a learner or distiller, with the settings of the plugin.
#[derive(Debug, Clone, Copy)]
pub struct Conformance<'a> {
    /// Settings of the plugin in TOML.
    pub settings: &'a str,
    /// Whether gradients are compared with finite differences. Set to false for methods that stop or reverse gradients
    /// on purpose. Default: true.
    pub finite_differences: bool,
}

impl Default for Conformance<'_> {
    fn default() -> Self {
        Self { settings: "", finite_differences: true }
    }
}

impl Conformance<'_> {
    /// Checks the learner registered as `name`.
    pub fn learner(&self, name: &str) -> Result<()> {
        let settings = read_settings(Kind::Learner, name, self.settings)?;
        let build = |bed: &TestBed| learner_trainer(bed, name, &settings);
        let check = Check { plugin: format!("`{name}`"), build: &build };
        for bed in TestBed::variants()? {
            check.learner_shapes(bed)?;
        }
        if self.finite_differences {
            check.gradients_are_derivatives(&ROLES)?;
        }
        check.everything()
    }

    /// Checks the distiller registered as `name`.
    pub fn distiller(&self, name: &str) -> Result<()> {
        let settings = read_settings(Kind::Distiller, name, self.settings)?;
        let alone = |bed: &TestBed| distiller_trainer(bed, name, &settings);
        // A run uses the distiller inside a `DistillerStack`.
        let build = |bed: &TestBed| -> Result<Trainer> {
            let mut trainer = alone(bed)?;
            trainer.distiller = Box::new(DistillerStack::new(vec![(name.into(), 1.0, trainer.distiller)])?);
            Ok(trainer)
        };
        let check = Check { plugin: format!("`{name}`"), build: &build };
        for bed in TestBed::variants()? {
            check.distiller_shapes(bed)?;
        }
        if self.finite_differences {
            check.gradients_are_derivatives(&[Role::Student])?;
        }
        check.everything()?;
        check.prediction_is_announced(&alone(&TestBed::new(1)?)?)
    }
}

/// Returns a SHA-256 over the gradients of a registered learner or distiller in the first step of a task, and over all
/// parameters after that step. Equal digests mean byte-identical results, for instance of a method that is linked and
/// the same method loaded at run time, or of two machines.
///
/// # Errors
/// A backbone or stream, which trains nothing, and errors of the plugin.
pub fn gradient_digest(kind: Kind, name: &str, settings: &str) -> Result<String> {
    let settings = read_settings(kind, name, settings)?;
    let bed = TestBed::new(1)?;
    let mut trainer = match kind {
        Kind::Learner => learner_trainer(&bed, name, &settings)?,
        Kind::Distiller => distiller_trainer(&bed, name, &settings)?,
        Kind::Backbone | Kind::Stream => {
            let promise = format!("only learners and distillers have gradients, not a {kind}");
            return Err(Error::ContractViolation { plugin: format!("`{name}`"), promise });
        }
    };
    let noise = Noise::new(1);
    let task = &noise.tasks()[0];
    trainer.begin_task(task)?;
    let mut digest = Sha256::new();
    let mut add = |name: &str, tensor: &Tensor| -> Result<()> {
        digest.update(name);
        let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        values.into_iter().for_each(|value| digest.update(value.to_le_bytes()));
        Ok(())
    };
    for role in ROLES {
        let vars = trainer.trainable(role);
        let mut optimizer = Optimizer::new(&trainer.settings.optimizer, vars.clone())?;
        let loss = trainer.loss(role, task, &noise.batch(0, 0)?)?;
        let gradients = loss.total.backward()?;
        for var in &vars {
            gradients.get(var.tensor()).map_or(Ok(()), |gradient| add(&var.name, gradient))?;
        }
        optimizer.step(&gradients)?;
        trainer.state(role)?.iter().try_for_each(|(name, tensor)| add(name, tensor))?;
    }
    Ok(crate::system::hex(&digest.finalize()))
}

/// Reads settings like a configuration, and checks that every setting has a doc comment and a valid name.
fn read_settings(kind: Kind, name: &str, settings: &str) -> Result<Settings> {
    let entry = registry::find(kind, name)?;
    let promise = |kept: bool, what: &str| promise(&format!("`{name}`"), kept, what);
    let taken: &[&str] = match kind {
        Kind::Distiller => &["name", "weight"],
        Kind::Backbone => &["name", "learner"],
        Kind::Learner | Kind::Stream => &["name"],
    };
    let schema = (entry.schema)();
    for (key, property) in schema.get("properties").and_then(|p| p.as_object()).into_iter().flatten() {
        let what =
            format!("a setting of a {kind} is not called `{key}`: this key is reserved in its section");
        promise(!taken.contains(&key.as_str()), &what)?;
        let what =
            format!("every setting has a doc comment, for `cdl describe`, but `{key}` has no doc comment");
        promise(property.get("description").is_some(), &what)?;
    }
    let unknown = Settings::from_iter([("no such setting".into(), toml::Value::Boolean(true))]);
    promise((entry.complete)(&unknown).is_err(), "a setting that does not exist is refused")?;
    let settings: Settings = toml::from_str(settings)
        .map_err(|e| Error::Config { origin: "settings".into(), reason: e.to_string() })?;
    (entry.complete)(&settings)
}

/// Returns the error of `plugin`, which violates its contract `promise`, unless `kept`.
fn promise(plugin: &str, kept: bool, promise: impl Into<String>) -> Result<()> {
    kept.then_some(())
        .ok_or_else(|| Error::ContractViolation { plugin: plugin.into(), promise: promise.into() })
}
