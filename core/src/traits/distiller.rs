//! The distillation method: what the student is told beyond the labels.

use candle_core::{Device, Tensor};

use crate::{
    error::Result,
    rng::Rng,
    traits::{BackboneSpec, Features, Injection, Learner, Mode, NamedVar, Pass, StateDict, Taps, Task},
};

/// Features and logits of a network for a batch.
#[derive(Debug, Clone)]
pub struct Output {
    /// CLS token and block outputs, as far as [`Distiller::taps`] asked for them. `features.tokens` holds the tokens
    /// that this distiller injected and no others; block outputs `(B, N, D)` hold the image's own tokens only.
    pub features: Features,
    /// Logits of the learner's own head over all classes of all tasks, `(B, C)`.
    pub logits: Tensor,
}

/// One named, already weighted summand of a loss.
#[derive(Debug, Clone)]
pub struct LossTerm {
    /// As it appears in logs: `kd`, `feature`, ...
    pub name: String,
    /// Scalar.
    pub value: Tensor,
}

impl LossTerm {
    /// Names a scalar.
    pub fn new(name: impl Into<String>, value: Tensor) -> Self {
        Self { name: name.into(), value }
    }
}

/// Block outputs that a distiller compares.
#[derive(Debug, Clone, Default)]
pub struct DistillerTaps {
    /// Taps of the teacher.
    pub teacher: Taps,
    /// Taps of the student.
    pub student: Taps,
}

/// Surroundings that a distiller is built for.
pub struct DistillerContext<'a> {
    /// The teacher's network.
    pub teacher: &'a BackboneSpec,
    /// The student's network.
    pub student: &'a BackboneSpec,
    /// The student's learner, for a further head of its kind.
    pub learner: &'a dyn Learner,
    /// Number of tasks.
    pub tasks: usize,
    /// `published` or `corrected`: defaults of settings that differ between the two.
    pub mode: Mode,
    /// Where tensors live.
    pub device: &'a Device,
    /// Generator for initial values.
    pub rng: Rng,
}

/// A distillation method. It returns data (prompts, named loss terms); the trainer applies it. None of these methods
/// has side effects but [`Distiller::restore`]: what is trained changes by the optimiser alone.
pub trait Distiller: Send {
    /// Weight of the student's cross-entropy, `1 - alpha` in most methods.
    fn cross_entropy_weight(&self) -> f64 {
        1.0
    }

    /// Whether [`Distiller::loss`] looks at the teacher; if not, the teacher does not run while the student learns.
    fn needs_teacher(&self) -> bool {
        true
    }

    /// Block outputs that [`Distiller::loss`] needs.
    fn taps(&self) -> DistillerTaps {
        DistillerTaps::default()
    }

    /// Prompts of its own for the student, merged after the learner's: as many tokens in every pass, and no penalty,
    /// which is one of the terms of [`Distiller::loss`].
    fn inject(&self, pass: Pass) -> Result<Injection> {
        let _ = pass;
        Ok(Injection::none())
    }

    /// The distillation terms of one batch. `teacher` carries no gradient and is `None` exactly when
    /// [`Distiller::needs_teacher`] is false; `labels` `(B,)` (u32) count over all classes and lie in `task.classes`,
    /// the classes that are learned now (all seen so far where a stream rehearses earlier images).
    fn loss(
        &self,
        student: &Output,
        teacher: Option<&Output>,
        labels: &Tensor,
        task: &Task,
    ) -> Result<Vec<LossTerm>>;

    /// Whether [`Distiller::predict`] is to be asked for the student's prediction; of several distillers only one may
    /// be. Without it the prediction is the learner's.
    fn predicts(&self) -> bool {
        false
    }

    /// The student's prediction at test time: logits `(B, C)`.
    fn predict(&self, student: &Output) -> Result<Tensor> {
        Ok(student.logits.clone())
    }

    /// Parameters trained together with the student's.
    fn trainable(&self) -> Vec<NamedVar> {
        Vec::new()
    }

    /// Everything that [`Distiller::restore`] needs.
    fn state(&self) -> Result<StateDict> {
        StateDict::of(&self.trainable())
    }

    /// Takes up a saved state.
    fn restore(&mut self, state: &StateDict) -> Result<()> {
        state.load_into(&self.trainable())
    }
}

/// The teacher's output, for distillers that need one.
///
/// # Errors
/// If the trainer gave none, which it does only to a distiller that said it needs none.
pub fn require_teacher(teacher: Option<&Output>) -> Result<&Output> {
    teacher.ok_or_else(|| crate::error::Error::State {
        owner: "distiller".into(),
        reason: "its loss needs the teacher's output, but `needs_teacher` returned false".into(),
    })
}
