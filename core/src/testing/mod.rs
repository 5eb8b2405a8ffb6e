//! The conformance kit: what a plugin promises by implementing one of the four traits, checked in one line.
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
//! [`check_backbone`] and [`check_stream`] say themselves what they check. A learner or distiller is found by its
//! registered name and run on a [`Lab`]: two tiny random vision transformers and a stream
//! of random pixels in three tasks. Checked are
//!
//! - its settings: documented, and refused if unknown;
//! - the shapes of what it returns, in all passes, with networks of several sizes, both modes, either query, and all
//!   classes learned at once as with rehearsal;
//! - that what it says of prompts taken from pools can be so, for every image;
//! - its gradients against finite differences of the loss, in the first task;
//! - that everything it trains gets a gradient and moves, and nothing else changes;
//! - that a seed decides everything;
//! - that a state saved in the middle of a task or at its end restores it, and an incomplete one is refused;
//! - that evaluation leaves no trace.
//!
//! The first broken promise is returned as [`Error::Promise`]. A method that stops gradients on purpose turns the
//! finite differences off by [`Conformance`].

mod backbone_checks;
mod lab;
mod method_checks;
mod stream_checks;

use candle_core::{DType, Tensor};
use sha2::{Digest, Sha256};

pub use crate::testing::{
    backbone_checks::check_backbone,
    lab::{Lab, Noise, Shape},
    stream_checks::check_stream,
};
use crate::{
    error::{Error, Result},
    registry::{self, Kind, Settings},
    testing::{
        lab::{ROLES, distiller_trainer, learner_trainer},
        method_checks::Check,
    },
    train::{DistillerStack, Optimizer, Trainer},
    traits::{Role, TaskStream},
};

/// Checks the learner registered as `name`, with `settings` in TOML, by all of [`Conformance`].
pub fn check_learner(name: &str, settings: &str) -> Result<()> {
    Conformance { settings, ..Default::default() }.learner(name)
}

/// Checks the distiller registered as `name`, with `settings` in TOML, by all of [`Conformance`].
pub fn check_distiller(name: &str, settings: &str) -> Result<()> {
    Conformance { settings, ..Default::default() }.distiller(name)
}

/// Checks a registered learner with a registered distiller, with settings in TOML: everything that is trained gets a
/// gradient and moves, nothing else changes, a saved state restores them, evaluation leaves no trace.
pub fn check_pair(learner: (&str, &str), distiller: (&str, &str)) -> Result<()> {
    let settings = [
        read_settings(Kind::Learner, learner.0, learner.1)?,
        read_settings(Kind::Distiller, distiller.0, distiller.1)?,
    ];
    let build = |lab: &Lab| lab.trainer_of((learner.0, &settings[0]), (distiller.0, &settings[1]));
    let check = Check { plugin: format!("`{}` with `{}`", learner.0, distiller.0), build: &build };
    check.only_trainable_tensors_change(Lab::new(3)?)?;
    check.saved_state_is_restored()?;
    check.evaluation_changes_nothing()
}

/// Checks to run on a plugin, and the settings to run them with.
#[derive(Debug, Clone, Copy)]
pub struct Conformance<'a> {
    /// Its settings in TOML.
    pub settings: &'a str,
    /// Whether gradients are compared with finite differences; not for methods that stop or reverse them on purpose.
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
        let build = |lab: &Lab| learner_trainer(lab, name, &settings);
        let check = Check { plugin: format!("`{name}`"), build: &build };
        for lab in Lab::variants()? {
            check.learner_shapes(lab)?;
        }
        if self.finite_differences {
            check.gradients_are_derivatives(&ROLES)?;
        }
        check.everything()
    }

    /// Checks the distiller registered as `name`.
    pub fn distiller(&self, name: &str) -> Result<()> {
        let settings = read_settings(Kind::Distiller, name, self.settings)?;
        let alone = |lab: &Lab| distiller_trainer(lab, name, &settings);
        // As a run uses it.
        let build = |lab: &Lab| -> Result<Trainer> {
            let mut trainer = alone(lab)?;
            trainer.distiller = Box::new(DistillerStack::new(vec![(name.into(), 1.0, trainer.distiller)])?);
            Ok(trainer)
        };
        let check = Check { plugin: format!("`{name}`"), build: &build };
        for lab in Lab::variants()? {
            check.distiller_shapes(lab)?;
        }
        if self.finite_differences {
            check.gradients_are_derivatives(&[Role::Student])?;
        }
        check.everything()?;
        check.prediction_is_announced(&alone(&Lab::new(1)?)?)
    }
}

/// SHA-256 over the gradients of a registered learner or distiller in the first step of a task, and over all parameters
/// after that step: equal digests mean equal to the byte. So one can tell whether a method computes the same linked in and
/// loaded, or on two machines. A kind of plugin that trains nothing is refused.
pub fn gradient_digest(kind: Kind, name: &str, settings: &str) -> Result<String> {
    let settings = read_settings(kind, name, settings)?;
    let lab = Lab::new(1)?;
    let mut trainer = match kind {
        Kind::Learner => learner_trainer(&lab, name, &settings)?,
        Kind::Distiller => distiller_trainer(&lab, name, &settings)?,
        Kind::Backbone | Kind::Stream => {
            let promise = format!("it is a {kind} and trains nothing");
            return Err(Error::Promise { plugin: format!("`{name}`"), promise });
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

/// Reads settings as a configuration would, and checks that they can be described to a user.
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
            format!("a setting of a {kind} cannot be called `{key}`: configurations use that key themselves");
        promise(!taken.contains(&key.as_str()), &what)?;
        let what = format!("its setting `{key}` has no doc comment, so `cdl describe` cannot explain it");
        promise(property.get("description").is_some(), &what)?;
    }
    let unknown = Settings::from_iter([("no such setting".into(), toml::Value::Boolean(true))]);
    promise((entry.complete)(&unknown).is_err(), "a setting that does not exist is refused")?;
    let settings: Settings = toml::from_str(settings)
        .map_err(|e| Error::Config { origin: "settings".into(), reason: e.to_string() })?;
    (entry.complete)(&settings)
}

/// The error of a promise that is not kept by `plugin`, which is written as messages name it.
fn promise(plugin: &str, kept: bool, promise: impl Into<String>) -> Result<()> {
    kept.then_some(()).ok_or_else(|| Error::Promise { plugin: plugin.into(), promise: promise.into() })
}
