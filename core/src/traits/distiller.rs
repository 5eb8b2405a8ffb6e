//! Trait of distillation methods, with its inputs and outputs.

use candle_core::{Device, Tensor};

use crate::{
    error::Result,
    rng::Rng,
    traits::{BackboneSpec, Features, Injection, Learner, Mode, NamedVar, Pass, StateDict, Taps, Task},
};

/// Features and logits of a network for a batch.
#[derive(Debug, Clone)]
pub struct Output {
    /// CLS token `(B, D)` and the block outputs that [`Distiller::taps`] requests. `features.tokens` contains only the
    /// tokens that this distiller injected. Block outputs `(B, N, D)` contain only the tokens of the image.
    pub features: Features,
    /// Logits of the learner's own head over all classes of all tasks, `(B, C)`.
    pub logits: Tensor,
}

/// Named term of a loss, already multiplied by its weight.
#[derive(Debug, Clone)]
pub struct LossTerm {
    /// Name in logs: `logits`, `feature`, ...
    pub name: String,
    /// Scalar value.
    pub value: Tensor,
}

impl LossTerm {
    /// Creates a loss term from a scalar.
    pub fn new(name: impl Into<String>, value: Tensor) -> Self {
        Self { name: name.into(), value }
    }
}

/// Block outputs that a distiller compares.
#[derive(Debug, Clone, Default)]
pub struct DistillerTaps {
    /// Block outputs of the teacher.
    pub teacher: Taps,
    /// Block outputs of the student.
    pub student: Taps,
}

/// Context in which a distiller is built.
pub struct DistillerContext<'a> {
    /// Backbone of the teacher.
    pub teacher: &'a BackboneSpec,
    /// Backbone of the student.
    pub student: &'a BackboneSpec,
    /// Learner of the student, which can create a second head ([`Learner::new_head`]).
    pub learner: &'a dyn Learner,
    /// Number of tasks.
    pub tasks: usize,
    /// `published` or `corrected`: selects the defaults of some settings.
    pub mode: Mode,
    /// Device of the tensors.
    pub device: &'a Device,
    /// Generator for initial values.
    pub rng: Rng,
}

/// A distillation method. It returns data (prompts, named loss terms), and the trainer applies it. Only
/// [`Distiller::restore`] has side effects; the optimiser updates the trainable parameters.
pub trait Distiller: Send {
    /// Returns the weight of the student's cross-entropy, `1 - alpha` in most methods.
    fn cross_entropy_weight(&self) -> f64 {
        1.0
    }

    /// Returns whether [`Distiller::loss`] uses the teacher's output. If not, the teacher does not run while the
    /// student learns.
    fn needs_teacher(&self) -> bool {
        true
    }

    /// Returns the block outputs that [`Distiller::loss`] needs.
    fn taps(&self) -> DistillerTaps {
        DistillerTaps::default()
    }

    /// Returns additional prompts for the student, which are merged after the learner's. The number of tokens must be
    /// the same in every pass. A penalty is not allowed here; it is a term of [`Distiller::loss`].
    fn inject(&self, pass: Pass) -> Result<Injection> {
        let _ = pass;
        Ok(Injection::none())
    }

    /// Returns the distillation terms of one batch. `teacher` has no gradient and is `None` exactly if
    /// [`Distiller::needs_teacher`] is false. `labels` `(B,)` (u32) are class indices within `task.classes`, the
    /// classes that are learned now (all classes seen so far if the stream rehearses images of earlier tasks).
    fn loss(
        &self,
        student: &Output,
        teacher: Option<&Output>,
        labels: &Tensor,
        task: &Task,
    ) -> Result<Vec<LossTerm>>;

    /// Returns whether [`Distiller::predict`] replaces the learner's prediction. At most one of several distillers
    /// may do so.
    fn predicts(&self) -> bool {
        false
    }

    /// Returns the student's prediction at test time: logits `(B, C)`.
    fn predict(&self, student: &Output) -> Result<Tensor> {
        Ok(student.logits.clone())
    }

    /// Returns the distiller's trainable parameters, which are trained together with the student's.
    fn trainable(&self) -> Vec<NamedVar> {
        Vec::new()
    }

    /// Returns the state for [`Distiller::restore`], by default [`Distiller::trainable`].
    fn state(&self) -> Result<StateDict> {
        StateDict::of(&self.trainable())
    }

    /// Restores a saved state.
    fn restore(&mut self, state: &StateDict) -> Result<()> {
        state.load_into(&self.trainable())
    }
}

/// Returns the teacher's output, for distillers that need one.
///
/// # Errors
/// A missing teacher, which means that [`Distiller::needs_teacher`] returned false.
pub fn require_teacher(teacher: Option<&Output>) -> Result<&Output> {
    teacher.ok_or_else(|| crate::error::Error::State {
        owner: "distiller".into(),
        reason: "its loss needs the teacher's output, but `needs_teacher` returned false".into(),
    })
}
