//! Trait of prompt methods, with its inputs and outputs.

use candle_core::{DType, Device, Tensor, Var};

use crate::traits::Role;
use crate::{
    error::Result,
    rng::Rng,
    system::memory,
    traits::{BackboneSpec, Features, Injection, Mode, Query, StateDict, Task},
};

/// A trainable tensor with its name in checkpoints.
#[derive(Debug, Clone)]
pub struct NamedVar {
    /// Name in the published code: `prompt.e_p_0`, `last.weight`, ...
    pub name: String,
    /// Variable. Clones share its storage.
    pub var: Var,
}

impl NamedVar {
    /// Creates a variable `name` with a copy of `value`.
    ///
    /// # Errors
    /// A variable that does not fit into memory.
    pub fn new(name: impl Into<String>, value: &Tensor) -> Result<Self> {
        if value.device().is_cpu() {
            memory::check_size(value.dims())?;
        }
        Ok(Self { name: name.into(), var: Var::from_tensor(value)? })
    }

    /// Creates a float32 variable `name` of `shape`, filled with zeros.
    ///
    /// # Errors
    /// A variable that does not fit into memory.
    pub fn zeros(name: impl Into<String>, shape: &[usize], device: &Device) -> Result<Self> {
        memory::check_size(shape)?;
        Self::new(name, &Tensor::zeros(shape, DType::F32, device)?)
    }

    /// Returns the current value, attached to the graph.
    pub fn tensor(&self) -> &Tensor {
        self.var.as_tensor()
    }
}

/// Purpose of a forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// A training step of this network: penalties apply.
    Train,
    /// A pass of the teacher while the student learns. Most learners treat it like [`Pass::Test`].
    Teach,
    /// Evaluation.
    Test,
}

/// Name of a quirk (a deviation of the published code from its paper), and whether it is active.
pub type Quirk = (&'static str, bool);

/// Context in which a learner is built.
#[derive(Debug)]
pub struct LearnerContext<'a> {
    /// Teacher or student.
    pub role: Role,
    /// Network into which the prompts are injected.
    pub backbone: &'a BackboneSpec,
    /// Width of the query and of the prompt keys: the student's `D` for both networks, unless each network computes its
    /// own query.
    pub query_width: usize,
    /// Number of classes of all tasks, which is the number of logits.
    pub classes: usize,
    /// Number of tasks.
    pub tasks: usize,
    /// `published` or `corrected`: selects the defaults of some settings.
    pub mode: Mode,
    /// Device of the tensors.
    pub device: &'a Device,
    /// Generator for initial values.
    pub rng: Rng,
}

/// A prompt method with a classification head: it maps a query to prompts, and features to logits.
///
/// [`Learner::inject`] and [`Learner::logits`] have no side effects. The optimiser updates the trainable parameters;
/// other state may change in [`Learner::begin_task`] and [`Learner::end_task`].
pub trait Learner: Send {
    /// Prepares for `task`, for instance by adding components. Called once before its first step.
    fn begin_task(&mut self, task: &Task, rng: &mut Rng) -> Result<()> {
        let _ = (task, rng);
        Ok(())
    }

    /// Returns the prompts for a batch of images. [`Query::get`] computes their queries `(B, query_width)`, without
    /// gradient. The forward pass of the query runs only if a learner calls `get`.
    fn inject(&self, query: &Query<'_>, pass: Pass) -> Result<Injection>;

    /// Returns logits `(B, C)` over all classes of all tasks, seen or not. `features.tokens` contains only the tokens
    /// that this learner injected.
    fn logits(&self, features: &Features) -> Result<Tensor>;

    /// Creates another head of the same architecture, for distillers that need one. Its tensors have the names
    /// `{name}.weight`, ...
    fn new_head(&self, name: &str, rng: &mut Rng) -> Result<Box<dyn Head>>;

    /// Finishes `task`. Called once after the student's last step of the task, before evaluation.
    fn end_task(&mut self, task: &Task) -> Result<()> {
        let _ = task;
        Ok(())
    }

    /// Returns the quirks that settings of this learner turn on or off, for the run record.
    fn quirks(&self) -> Vec<Quirk> {
        Vec::new()
    }

    /// Returns the parameters that the current task trains.
    fn trainable(&self) -> Vec<NamedVar>;

    /// Returns the state for [`Learner::restore`], by default [`Learner::trainable`].
    fn state(&self) -> Result<StateDict> {
        StateDict::of(&self.trainable())
    }

    /// Restores a `state` that was saved during or after `task`.
    ///
    /// # Errors
    /// Tensors that are missing or have another shape. The error contains the tensor's name.
    fn restore(&mut self, task: &Task, state: &StateDict) -> Result<()> {
        let _ = task;
        state.load_into(&self.trainable())
    }
}

/// Classification head on one token.
pub trait Head: Send {
    /// Returns logits `(B, C)` of tokens `(B, D)`.
    fn logits(&self, token: &Tensor) -> Result<Tensor>;

    /// Returns the trainable parameters.
    fn trainable(&self) -> Vec<NamedVar>;
}
