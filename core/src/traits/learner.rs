//! The prompt method: it turns a query into prompts and features into logits.

use candle_core::{DType, Device, Tensor, Var};

use crate::traits::Role;
use crate::{
    error::Result,
    rng::Rng,
    system::memory,
    traits::{BackboneSpec, Features, Injection, Mode, Query, StateDict, Task},
};

/// A trainable tensor with the name it has in checkpoints.
#[derive(Debug, Clone)]
pub struct NamedVar {
    /// As in the published code: `prompt.e_p_0`, `last.weight`, ...
    pub name: String,
    /// The variable itself; clones share its storage.
    pub var: Var,
}

impl NamedVar {
    /// Makes a copy of `value` trainable under `name`.
    pub fn new(name: impl Into<String>, value: &Tensor) -> Result<Self> {
        if value.device().is_cpu() {
            memory::check_size(value.dims())?;
        }
        Ok(Self { name: name.into(), var: Var::from_tensor(value)? })
    }

    /// Makes zeros of `shape` trainable under `name`.
    pub fn zeros(name: impl Into<String>, shape: &[usize], device: &Device) -> Result<Self> {
        memory::check_size(shape)?;
        Self::new(name, &Tensor::zeros(shape, DType::F32, device)?)
    }

    /// The current value, still attached to the graph.
    pub fn tensor(&self) -> &Tensor {
        self.var.as_tensor()
    }
}

/// Purpose of a forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// A training step of this network: penalties apply.
    Train,
    /// The teacher while the student learns; most learners treat it like [`Pass::Test`].
    Teach,
    /// Evaluation.
    Test,
}

/// A departure of the published code from the papers, by name, and whether it is in force.
pub type Quirk = (&'static str, bool);

/// Surroundings that a learner is built for.
#[derive(Debug)]
pub struct LearnerContext<'a> {
    /// Teacher or student.
    pub role: Role,
    /// The network it prompts.
    pub backbone: &'a BackboneSpec,
    /// Width of the query: prompt keys have it. It is the student's `D` in both networks, unless each network makes
    /// its own query.
    pub query_width: usize,
    /// Classes over all tasks: rows of the head.
    pub classes: usize,
    /// Number of tasks.
    pub tasks: usize,
    /// `published` or `corrected`: defaults of settings that differ between the two.
    pub mode: Mode,
    /// Where tensors live.
    pub device: &'a Device,
    /// Generator for initial values.
    pub rng: Rng,
}

/// A prompt method with a classifier.
///
/// [`Learner::inject`] and [`Learner::logits`] have no side effects: what is trained changes by the optimiser alone,
/// everything else in [`Learner::begin_task`] and [`Learner::end_task`].
pub trait Learner: Send {
    /// Called once before the first step of `task` (for instance to add components).
    fn begin_task(&mut self, task: &Task, rng: &mut Rng) -> Result<()> {
        let _ = (task, rng);
        Ok(())
    }

    /// Prompts for a batch of images. [`Query::get`] gives their queries `(B, query_width)`, without gradient; a
    /// learner that never asks saves the pass that computes them.
    fn inject(&self, query: &Query<'_>, pass: Pass) -> Result<Injection>;

    /// Logits `(B, C)` over all classes of all tasks, seen or not. `features.tokens` holds the tokens that this learner
    /// injected and no others.
    fn logits(&self, features: &Features) -> Result<Tensor>;

    /// A further head of this learner's own kind, for distillers that need one; its tensors are called
    /// `{name}.weight` and so on.
    fn new_head(&self, name: &str, rng: &mut Rng) -> Result<Box<dyn Head>>;

    /// Called once after the student's last step of `task`, before evaluation.
    fn end_task(&mut self, task: &Task) -> Result<()> {
        let _ = task;
        Ok(())
    }

    /// Departures of the published code that this learner can switch, for the run record.
    fn quirks(&self) -> Vec<Quirk> {
        Vec::new()
    }

    /// Variables that the current task trains.
    fn trainable(&self) -> Vec<NamedVar>;

    /// Everything that [`Learner::restore`] needs, by default [`Learner::trainable`].
    fn state(&self) -> Result<StateDict> {
        StateDict::of(&self.trainable())
    }

    /// Restores `state` as it was saved during or after `task`.
    ///
    /// # Errors
    /// Tensors that are missing or have another shape, by name.
    fn restore(&mut self, task: &Task, state: &StateDict) -> Result<()> {
        let _ = task;
        state.load_into(&self.trainable())
    }
}

/// A classifier on one token.
pub trait Head: Send {
    /// Logits `(B, C)` of tokens `(B, D)`.
    fn logits(&self, token: &Tensor) -> Result<Tensor>;

    /// Its parameters.
    fn trainable(&self) -> Vec<NamedVar>;
}
