//! Optimisers, with their state as tensors.

use std::ops::Range;

use candle_core::{Device, Tensor, backprop::GradStore};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    registry::ranges,
    traits::{NamedVar, StateDict},
};
use cdl_kernels::{assign_from_flat, flat};

/// Update rule. All rules follow PyTorch's optimisers of the same name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerName {
    /// Adam (Kingma and Ba, arXiv 1412.6980).
    #[default]
    Adam,
    /// Adam that divides by the root of the largest mean square so far (Reddi et al., arXiv 1904.09237).
    Amsgrad,
    /// Stochastic gradient descent with momentum.
    Sgd,
    /// Gradients divided by their running root mean square (Tieleman and Hinton, 2012), with momentum.
    Rmsprop,
}

/// Settings of the optimiser. Each network gets a new optimiser for every task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct OptimizerConfig {
    /// Update rule.
    pub name: OptimizerName,
    /// Learning rate at the start of a task.
    pub lr: f64,
    /// adam, amsgrad: decay of the running mean of gradients (beta1). sgd, rmsprop: momentum, the share of the previous
    /// step that is added to the next one.
    pub momentum: f64,
    /// adam, amsgrad: decay of the running mean of squared gradients.
    pub beta2: f64,
    /// rmsprop: decay of the running mean of squared gradients.
    pub alpha: f64,
    /// adam, amsgrad, rmsprop: value added to the root of the mean square.
    pub eps: f64,
    /// L2 penalty: the parameter times this value is added to its gradient. As in the published code, the penalty also
    /// changes parameters of other tasks that share a tensor with the current task's: prompt components and head rows.
    pub weight_decay: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            name: OptimizerName::Adam,
            lr: 1e-3,
            momentum: 0.9,
            beta2: 0.999,
            alpha: 0.99,
            eps: 1e-8,
            weight_decay: 0.0,
        }
    }
}

impl OptimizerConfig {
    /// Checks the ranges of all values.
    pub(crate) fn validate(&self) -> Result<()> {
        for (key, value) in [("momentum", self.momentum), ("beta2", self.beta2), ("alpha", self.alpha)] {
            if !(0.0..1.0).contains(&value) {
                return Err(Error::setting(key, value, "expected a number from 0 to below 1"));
            }
        }
        ranges::positive("lr", self.lr)?;
        ranges::positive("eps", self.eps)?;
        ranges::non_negative("weight_decay", self.weight_decay)
    }
}

/// Optimiser of a set of variables.
#[derive(Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    lr: f64,
    groups: Vec<Group>,
}

/// Variables that received gradients in the same steps. They are updated as one flat tensor, which takes few operations
/// for any number of variables.
#[derive(Debug)]
struct Group {
    vars: Vec<NamedVar>,
    moments: Moments,
}

/// Names of the running values in checkpoints: mean of the gradients (sgd and rmsprop: the last step), mean of their
/// squares, and the largest mean of squares so far.
const MOMENTS: [&str; 3] = ["mean", "square", "largest"];

/// State of the update rule for a group. The [`MOMENTS`] that the rule uses exist from the first step on.
#[derive(Debug, Clone, Default)]
struct Moments {
    steps: u32,
    rows: [Option<Tensor>; 3],
}

impl Optimizer {
    /// Creates an optimiser of `vars` with the learning rate of `config`.
    pub fn new(config: &OptimizerConfig, vars: Vec<NamedVar>) -> Result<Self> {
        let mut groups = Vec::new();
        for var in vars {
            Group::add(&mut groups, var, Moments::default())?;
        }
        Ok(Self { config: config.clone(), lr: config.lr, groups })
    }

    /// Returns whether the rule uses each of [`MOMENTS`].
    fn used_moments(&self) -> [bool; 3] {
        let momentum = self.config.momentum > 0.0;
        match self.config.name {
            OptimizerName::Adam => [true, true, false],
            OptimizerName::Amsgrad => [true, true, true],
            OptimizerName::Sgd => [momentum, false, false],
            OptimizerName::Rmsprop => [momentum, true, false],
        }
    }

    /// Sets the learning rate of the following steps.
    pub fn set_lr(&mut self, lr: f64) {
        self.lr = lr;
    }

    /// Takes one step. Variables without a gradient do not change.
    pub fn step(&mut self, gradients: &GradStore) -> Result<()> {
        let mut groups = Vec::new();
        for group in self.groups.drain(..) {
            groups.extend(group.split(|var| gradients.get(var.tensor()).is_some())?);
        }
        self.groups = groups;
        for Group { vars, moments } in &mut self.groups {
            // After the split, a group has gradients for all of its variables or for none.
            let var_gradients: Vec<&Tensor> =
                vars.iter().filter_map(|var| gradients.get(var.tensor())).collect();
            if var_gradients.is_empty() {
                continue;
            }
            // `flat` detaches, so that the graph of a step can be freed.
            let gradient = flat(&var_gradients)?;
            let value = flat(&vars.iter().map(NamedVar::tensor).collect::<Vec<_>>())?;
            let gradient = match self.config.weight_decay {
                0.0 => gradient,
                decay => (gradient + (&value * decay)?)?,
            };
            let value = (value - (moments.step(gradient, &self.config)? * self.lr)?)?;
            assign_from_flat(&vars.iter().map(|var| &var.var).collect::<Vec<_>>(), &value)?;
        }
        Ok(())
    }

    /// Returns the names of the variables that have received no gradient so far.
    pub fn without_gradient(&self) -> Vec<&str> {
        let unmoved = self.groups.iter().filter(|group| group.moments.steps == 0);
        unmoved.flat_map(|group| group.vars.iter().map(|var| var.name.as_str())).collect()
    }

    /// Returns the state for [`Optimizer::restore`]: for a variable `x`, the tensors `x.steps` and, if the rule uses
    /// them, `x.mean`, `x.square` and `x.largest`.
    pub fn state(&self) -> Result<StateDict> {
        let mut state = StateDict::default();
        for Group { vars, moments } in &self.groups {
            for (NamedVar { name, var }, range) in flat_ranges(vars) {
                state.insert(format!("{name}.steps"), Tensor::new(moments.steps, &Device::Cpu)?);
                for (part, row) in MOMENTS.iter().zip(&moments.rows) {
                    if let Some(row) = row {
                        let row = row.narrow(0, range.start, range.len())?.reshape(var.shape())?;
                        state.insert(format!("{name}.{part}"), row.copy()?);
                    }
                }
            }
        }
        Ok(state)
    }

    /// Restores the state of an optimiser with the same rule and variables. The learning rate is not part of the
    /// state: it depends on the epoch.
    ///
    /// # Errors
    /// Variables that are missing in the state, tensors of another shape, or a state of another rule.
    pub fn restore(&mut self, state: &StateDict) -> Result<()> {
        let used = self.used_moments();
        let mut groups: Vec<Group> = Vec::new();
        for var in self.groups.iter().flat_map(|group| &group.vars) {
            let NamedVar { name, var: own } = var;
            let wrong = |reason: String| Error::State { owner: format!("optimizer, {name}"), reason };
            let steps = state.get(&format!("{name}.steps"));
            let steps =
                steps.ok_or_else(|| wrong("missing from the saved state".into()))?.to_scalar::<u32>()?;
            let mut moments = Moments { steps, ..Moments::default() };
            for ((part, row), used) in MOMENTS.iter().zip(&mut moments.rows).zip(used) {
                let saved = state.get(&format!("{name}.{part}"));
                if saved.is_some() != (used && steps > 0) {
                    return Err(wrong("saved by another update rule".into()));
                }
                let Some(saved) = saved else { continue };
                if saved.shape() != own.shape() {
                    let (saved, expected) = (saved.dims(), own.dims());
                    return Err(wrong(format!("{part} saved with shape {saved:?}, expected {expected:?}")));
                }
                *row = Some(saved.to_device(own.device())?.to_dtype(own.dtype())?.flatten_all()?);
            }
            Group::add(&mut groups, var.clone(), moments)?;
        }
        self.groups = groups;
        Ok(())
    }
}

/// Returns each variable with its range in the flat tensor.
fn flat_ranges(vars: &[NamedVar]) -> impl Iterator<Item = (&NamedVar, Range<usize>)> {
    vars.iter().scan(0, |start, var| {
        let range = *start..*start + var.var.elem_count();
        *start = range.end;
        Some((var, range))
    })
}

impl Group {
    /// Splits the group into the variables that satisfy `predicate` and the others. Returns only groups with variables.
    fn split(self, predicate: impl Fn(&NamedVar) -> bool) -> Result<Vec<Self>> {
        let with = self.vars.iter().filter(|var| predicate(var)).count();
        if with == 0 || with == self.vars.len() {
            return Ok(vec![self]);
        }
        let mut parts = Vec::new();
        for wanted in [true, false] {
            let chosen: Vec<_> =
                flat_ranges(&self.vars).filter(|(var, _)| predicate(var) == wanted).collect();
            let mut moments = self.moments.clone();
            for row in moments.rows.iter_mut().flatten() {
                let pieces = chosen.iter().map(|(_, range)| row.narrow(0, range.start, range.len()));
                *row = Tensor::cat(&pieces.collect::<candle_core::Result<Vec<_>>>()?, 0)?;
            }
            parts.push(Self { vars: chosen.iter().map(|(var, _)| (*var).clone()).collect(), moments });
        }
        Ok(parts)
    }

    /// Adds a variable to the group with the same dtype and number of steps, or to a new group if there is none.
    fn add(groups: &mut Vec<Self>, var: NamedVar, moments: Moments) -> Result<()> {
        let fits = |group: &&mut Self| {
            let same_type = group.vars.iter().all(|other| other.var.dtype() == var.var.dtype());
            group.moments.steps == moments.steps && same_type
        };
        let Some(Self { vars, moments: ours }) = groups.iter_mut().find(fits) else {
            groups.push(Self { vars: vec![var], moments });
            return Ok(());
        };
        for (ours, theirs) in ours.rows.iter_mut().zip(moments.rows) {
            if let (Some(ours), Some(theirs)) = (ours, theirs) {
                *ours = Tensor::cat(&[&*ours, &theirs], 0)?;
            }
        }
        vars.push(var);
        Ok(())
    }
}

impl Moments {
    /// Returns the direction of the next step for the gradient `g`, before multiplication by the learning rate:
    ///
    /// - sgd: `b ← μ b + g`; without momentum `g`
    /// - rmsprop: `v ← α v + (1-α) g²`, then the rule of sgd for `g / (√v + ε)`
    /// - adam: `m ← β₁ m + (1-β₁) g`, `v ← β₂ v + (1-β₂) g²`; `m̂ / (√v̂ + ε)` with `m̂ = m / (1-β₁ᵗ)` and
    ///   `v̂ = v / (1-β₂ᵗ)`; AMSGrad uses the largest `v` so far
    fn step(&mut self, gradient: Tensor, config: &OptimizerConfig) -> Result<Tensor> {
        let OptimizerConfig { name, momentum, beta2, alpha, eps, .. } = *config;
        self.steps += 1;
        let steps = self.steps as i32;
        let [mean, square, largest] = &mut self.rows;
        let step = match name {
            OptimizerName::Sgd => gradient,
            OptimizerName::Rmsprop => {
                let square = average(square, &gradient.sqr()?, alpha)?;
                (gradient / (square.sqrt()? + eps)?)?
            }
            OptimizerName::Adam | OptimizerName::Amsgrad => {
                let mean = average(mean, &gradient, momentum)?;
                let mut square = average(square, &gradient.sqr()?, beta2)?;
                if name == OptimizerName::Amsgrad {
                    square = largest.take().map_or(Ok(square.clone()), |largest| largest.maximum(&square))?;
                    *largest = Some(square.clone());
                }
                let root = (square.sqrt()? / (1.0 - beta2.powi(steps)).sqrt())?;
                return Ok(((mean / (root + eps)?)? / (1.0 - momentum.powi(steps)))?);
            }
        };
        if momentum == 0.0 {
            return Ok(step);
        }
        let step = match mean.take() {
            Some(last) => ((last * momentum)? + step)?,
            None => step,
        };
        Ok(mean.insert(step).clone())
    }
}

/// Updates a running mean, initially zero, to `decay · mean + (1 - decay) · value`.
fn average(mean: &mut Option<Tensor>, value: &Tensor, decay: f64) -> Result<Tensor> {
    let new = (value * (1.0 - decay))?;
    let new = match mean.take() {
        Some(mean) => ((mean * decay)? + new)?,
        None => new,
    };
    Ok(mean.insert(new).clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    /// Variables that receive gradients in different steps are updated as by separate optimisers.
    #[test]
    fn each_variable_counts_its_own_steps() -> Result<()> {
        let config = OptimizerConfig { lr: 0.1, ..Default::default() };
        let make = |name: &str, values: &[f64]| -> Result<NamedVar> {
            Ok(NamedVar { name: name.into(), var: Var::new(values, &Device::Cpu)? })
        };
        let loss = |var: &NamedVar| -> Result<Tensor> { Ok(var.tensor().sqr()?.sum_all()?) };
        // Steps in which the first and the second variable have a gradient.
        let plan = [(true, true), (true, false), (false, true), (true, true)];
        let (a, b) = (make("a", &[1.0, -2.0])?, make("b", &[0.5])?);
        let mut together = Optimizer::new(&config, vec![a.clone(), b.clone()])?;
        assert_eq!(together.without_gradient(), ["a", "b"]);
        for (step, (of_a, of_b)) in plan.into_iter().enumerate() {
            let mut total = Tensor::zeros((), candle_core::DType::F64, &Device::Cpu)?;
            for (var, on) in [(&a, of_a), (&b, of_b)] {
                if on {
                    total = (total + loss(var)?)?;
                }
            }
            together.step(&total.backward()?)?;
            // A new optimiser continues from the saved state.
            if step == 1 {
                let mut fresh = Optimizer::new(&config, vec![a.clone(), b.clone()])?;
                fresh.restore(&together.state()?)?;
                together = fresh;
            }
        }
        assert!(together.without_gradient().is_empty());
        for (joint, values) in [(&a, &[1.0, -2.0][..]), (&b, &[0.5])] {
            let var = make("alone", values)?;
            let mut alone = Optimizer::new(&config, vec![var.clone()])?;
            for _ in 0..3 {
                alone.step(&loss(&var)?.backward()?)?;
            }
            assert_eq!(joint.tensor().to_vec1::<f64>()?, var.tensor().to_vec1::<f64>()?);
        }
        Ok(())
    }

    #[test]
    fn invalid_learning_rates_are_refused() {
        for lr in [f64::NAN, 0.0, -1.0, f64::INFINITY] {
            let error = OptimizerConfig { lr, ..Default::default() }.validate();
            assert!(error.is_err_and(|e| e.to_string().contains("`lr = ")));
        }
    }
}
