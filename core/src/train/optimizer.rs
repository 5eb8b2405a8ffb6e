//! Optimisers. Their state is plain tensors.

use std::ops::Range;

use candle_core::{Device, Tensor, backprop::GradStore};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    registry::ranges,
    traits::{NamedVar, StateDict},
};
use cdl_kernels::{flat, set_from_flat};

/// Which update rule. All follow PyTorch's optimisers of the same name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerName {
    /// Adam (Kingma and Ba, arXiv 1412.6980).
    #[default]
    Adam,
    /// Adam with the largest mean square so far (Reddi et al., arXiv 1904.09237).
    Amsgrad,
    /// Stochastic gradient descent with momentum.
    Sgd,
    /// Gradients divided by their running root mean square (Tieleman and Hinton, 2012), with momentum.
    Rmsprop,
}

/// The optimiser; a fresh one is made for every task, for teacher and student apart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct OptimizerConfig {
    /// Update rule.
    pub name: OptimizerName,
    /// Learning rate at the start of a task.
    pub lr: f64,
    /// adam, amsgrad: decay of the running mean of gradients (beta1). sgd, rmsprop: how much of the last step is
    /// taken again.
    pub momentum: f64,
    /// adam, amsgrad: decay of the running mean of squared gradients.
    pub beta2: f64,
    /// rmsprop: decay of the running mean of squared gradients.
    pub alpha: f64,
    /// adam, amsgrad, rmsprop: added to the root of the mean square.
    pub eps: f64,
    /// L2 penalty: this times the parameter is added to its gradient. As in the published code it also moves what
    /// the current task does not train but shares a tensor with: components and classes of other tasks.
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
    /// Refuses values that no run can work with.
    pub(crate) fn validate(&self) -> Result<()> {
        for (key, value) in [("momentum", self.momentum), ("beta2", self.beta2), ("alpha", self.alpha)] {
            if !(0.0..1.0).contains(&value) {
                return Err(Error::setting(key, value, "expected 0 or more and below 1"));
            }
        }
        ranges::positive("lr", self.lr)?;
        ranges::positive("eps", self.eps)?;
        ranges::non_negative("weight_decay", self.weight_decay)
    }
}

/// Updates a set of variables from their gradients.
#[derive(Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    lr: f64,
    groups: Vec<Group>,
}

/// Variables that were given gradients in the same steps. They are updated as one row of numbers: a few operations
/// whatever their count, and one gradient that several devices can add up.
#[derive(Debug)]
struct Group {
    vars: Vec<NamedVar>,
    moments: Moments,
}

/// What the rule remembers of a group's gradients; tensors appear with the first step.
#[derive(Debug, Clone, Default)]
struct Moments {
    steps: u32,
    /// Running mean of gradients, or the last step for rules with momentum.
    mean: Option<Tensor>,
    /// Running mean of squared gradients.
    square: Option<Tensor>,
    /// Largest `square` so far.
    largest: Option<Tensor>,
}

impl Optimizer {
    /// A fresh optimiser at the configured rate.
    pub fn new(config: &OptimizerConfig, vars: Vec<NamedVar>) -> Result<Self> {
        let mut groups = Vec::new();
        for var in vars {
            Group::take_in(&mut groups, var, Moments::default())?;
        }
        Ok(Self { config: config.clone(), lr: config.lr, groups })
    }

    /// Which of `mean`, `square` and `largest` the rule keeps.
    fn keeps(&self) -> [bool; 3] {
        let momentum = self.config.momentum > 0.0;
        match self.config.name {
            OptimizerName::Adam => [true, true, false],
            OptimizerName::Amsgrad => [true, true, true],
            OptimizerName::Sgd => [momentum, false, false],
            OptimizerName::Rmsprop => [momentum, true, false],
        }
    }

    /// Sets the rate of the following steps.
    pub fn set_lr(&mut self, lr: f64) {
        self.lr = lr;
    }

    /// One step. Variables without a gradient stay as they are.
    ///
    /// # Errors
    /// Tensor operations that fail.
    pub fn step(&mut self, gradients: &GradStore) -> Result<()> {
        let mut groups = Vec::new();
        for group in self.groups.drain(..) {
            groups.extend(group.split(|var| gradients.get(var.tensor()).is_some())?);
        }
        self.groups = groups;
        for Group { vars, moments } in &mut self.groups {
            // A group has gradients for all of its variables or for none.
            let of_vars: Vec<&Tensor> = vars.iter().filter_map(|var| gradients.get(var.tensor())).collect();
            if of_vars.is_empty() {
                continue;
            }
            // Detached, so that no step's graph outlives it.
            let gradient = flat(&of_vars)?;
            let value = flat(&vars.iter().map(NamedVar::tensor).collect::<Vec<_>>())?;
            let gradient = match self.config.weight_decay {
                0.0 => gradient,
                decay => (gradient + (&value * decay)?)?,
            };
            moments.steps += 1;
            let step = match self.config.name {
                OptimizerName::Adam | OptimizerName::Amsgrad => moments.adam(&gradient, &self.config)?,
                OptimizerName::Sgd => moments.momentum(gradient, self.config.momentum)?,
                OptimizerName::Rmsprop => moments.rmsprop(&gradient, &self.config)?,
            };
            let value = (value - (step * self.lr)?)?;
            set_from_flat(&vars.iter().map(|var| &var.var).collect::<Vec<_>>(), &value)?;
        }
        Ok(())
    }

    /// Everything that [`Optimizer::restore`] needs: of a variable `x`, `x.steps` and, as far as its rule has them,
    /// `x.mean`, `x.square` and `x.largest`.
    pub fn state(&self) -> Result<StateDict> {
        let mut state = StateDict::default();
        for Group { vars, moments } in &self.groups {
            for (NamedVar { name, var }, place) in places(vars) {
                state.insert(format!("{name}.steps"), Tensor::new(moments.steps, &Device::Cpu)?);
                for (part, tensor) in moments.parts() {
                    if let Some(tensor) = tensor {
                        let tensor = tensor.narrow(0, place.start, place.len())?.reshape(var.shape())?;
                        state.insert(format!("{name}.{part}"), tensor.copy()?);
                    }
                }
            }
        }
        Ok(state)
    }

    /// Takes up a state saved by an optimiser of the same rule for the same variables. The rate is not part of it: it
    /// follows from the epoch.
    ///
    /// # Errors
    /// A variable that the state does not know, tensors of another shape, or a state of another rule, by name.
    pub fn restore(&mut self, state: &StateDict) -> Result<()> {
        let keeps = self.keeps();
        let mut groups: Vec<Group> = Vec::new();
        for var in self.groups.iter().flat_map(|group| &group.vars) {
            let name = &var.name;
            let wrong = |reason: String| Error::State { owner: format!("optimizer, {name}"), reason };
            let steps =
                state.get(&format!("{name}.steps")).ok_or_else(|| wrong("not in the saved state".into()))?;
            let mut moments = Moments { steps: steps.to_scalar::<u32>()?, ..Moments::default() };
            let parts = [
                ("mean", &mut moments.mean),
                ("square", &mut moments.square),
                ("largest", &mut moments.largest),
            ];
            for ((part, tensor), kept) in parts.into_iter().zip(keeps) {
                let saved = state.get(&format!("{name}.{part}"));
                if saved.is_some() != (kept && moments.steps > 0) {
                    return Err(wrong("saved by another update rule".into()));
                }
                if let Some(saved) = saved.filter(|saved| saved.shape() != var.var.shape()) {
                    let (saved, expected) = (saved.dims(), var.var.dims());
                    return Err(wrong(format!("{part} saved with shape {saved:?}, expected {expected:?}")));
                }
                *tensor = match saved {
                    Some(saved) => {
                        let saved = saved.to_device(var.var.device())?.to_dtype(var.var.dtype())?;
                        Some(saved.flatten_all()?)
                    }
                    None => None,
                };
            }
            Group::take_in(&mut groups, var.clone(), moments)?;
        }
        self.groups = groups;
        Ok(())
    }
}

/// Where in their row each of the variables is.
fn places(vars: &[NamedVar]) -> impl Iterator<Item = (&NamedVar, Range<usize>)> {
    vars.iter().scan(0, |start, var| {
        let place = *start..*start + var.var.elem_count();
        *start = place.end;
        Some((var, place))
    })
}

impl Group {
    /// The variables for which `has` holds and the others, where there are both.
    fn split(self, has: impl Fn(&NamedVar) -> bool) -> Result<Vec<Self>> {
        let with = self.vars.iter().filter(|var| has(var)).count();
        if with == 0 || with == self.vars.len() {
            return Ok(vec![self]);
        }
        let mut parts = Vec::new();
        for wanted in [true, false] {
            let chosen: Vec<_> = places(&self.vars).filter(|(var, _)| has(var) == wanted).collect();
            let pick = |tensor: &Option<Tensor>| -> Result<Option<Tensor>> {
                let Some(tensor) = tensor else { return Ok(None) };
                let pieces =
                    chosen.iter().map(|(_, place)| Ok(tensor.narrow(0, place.start, place.len())?));
                Ok(Some(Tensor::cat(&pieces.collect::<Result<Vec<_>>>()?, 0)?))
            };
            let Moments { steps, mean, square, largest } = &self.moments;
            let moments =
                Moments { steps: *steps, mean: pick(mean)?, square: pick(square)?, largest: pick(largest)? };
            parts.push(Self { vars: chosen.iter().map(|(var, _)| (*var).clone()).collect(), moments });
        }
        Ok(parts)
    }

    /// Puts a variable into the group of those of its type that have had as many steps.
    fn take_in(groups: &mut Vec<Self>, var: NamedVar, moments: Moments) -> Result<()> {
        let fits = |group: &&mut Self| {
            let same_type = group.vars.iter().all(|other| other.var.dtype() == var.var.dtype());
            group.moments.steps == moments.steps && same_type
        };
        let Some(Self { vars, moments: ours }) = groups.iter_mut().find(fits) else {
            groups.push(Self { vars: vec![var], moments });
            return Ok(());
        };
        let append = |ours: &mut Option<Tensor>, theirs: Option<Tensor>| -> Result<()> {
            if let (Some(ours), Some(theirs)) = (ours, theirs) {
                *ours = Tensor::cat(&[&*ours, &theirs], 0)?;
            }
            Ok(())
        };
        append(&mut ours.mean, moments.mean)?;
        append(&mut ours.square, moments.square)?;
        append(&mut ours.largest, moments.largest)?;
        vars.push(var);
        Ok(())
    }
}

impl Moments {
    /// By the names that they are saved under.
    fn parts(&self) -> [(&'static str, &Option<Tensor>); 3] {
        [("mean", &self.mean), ("square", &self.square), ("largest", &self.largest)]
    }

    /// `m ← β₁ m + (1-β₁) g`, `v ← β₂ v + (1-β₂) g²`; the step is `m̂ / (√v̂ + ε)` with `m̂ = m / (1-β₁ᵗ)` and
    /// `v̂ = v / (1-β₂ᵗ)`, where AMSGrad takes the largest `v` so far.
    fn adam(&mut self, gradient: &Tensor, config: &OptimizerConfig) -> Result<Tensor> {
        let OptimizerConfig { momentum, beta2, eps, .. } = *config;
        let mean = average(self.mean.take(), gradient, momentum)?;
        let square = average(self.square.take(), &gradient.sqr()?, beta2)?;
        let used = match config.name {
            OptimizerName::Amsgrad => {
                let largest = match self.largest.take() {
                    Some(largest) => largest.maximum(&square)?,
                    None => square.clone(),
                };
                self.largest.insert(largest).clone()
            }
            _ => square.clone(),
        };
        let steps = self.steps as i32;
        let root = (1.0 - beta2.powi(steps)).sqrt();
        let step = (&mean / ((used.sqrt()? / root)? + eps)?)? / (1.0 - momentum.powi(steps));
        (self.mean, self.square) = (Some(mean), Some(square));
        Ok(step?)
    }

    /// The step `b ← μ b + g`; without momentum the gradient itself.
    fn momentum(&mut self, gradient: Tensor, momentum: f64) -> Result<Tensor> {
        if momentum == 0.0 {
            return Ok(gradient);
        }
        let step = match self.mean.take() {
            Some(last) => ((last * momentum)? + gradient)?,
            None => gradient,
        };
        Ok(self.mean.insert(step).clone())
    }

    /// `v ← α v + (1-α) g²`; the step is `g / (√v + ε)`, with momentum.
    fn rmsprop(&mut self, gradient: &Tensor, config: &OptimizerConfig) -> Result<Tensor> {
        let square = average(self.square.take(), &gradient.sqr()?, config.alpha)?;
        let scaled = (gradient / (square.sqrt()? + config.eps)?)?;
        self.square = Some(square);
        self.momentum(scaled, config.momentum)
    }
}

/// `decay · mean + (1 - decay) · value`, from zero.
fn average(mean: Option<Tensor>, value: &Tensor, decay: f64) -> Result<Tensor> {
    let new = (value * (1.0 - decay))?;
    Ok(match mean {
        Some(mean) => ((mean * decay)? + new)?,
        None => new,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    /// Two steps on `p²` from 1, worked out by hand: Adam's first step is `lr` long whatever the gradient.
    #[test]
    fn adam_follows_its_definition() -> Result<()> {
        let var = NamedVar { name: "p".into(), var: Var::new(&[1f64], &Device::Cpu)? };
        let config = OptimizerConfig { lr: 0.1, ..Default::default() };
        let mut optimizer = Optimizer::new(&config, vec![var.clone()])?;
        let (mut p, mut m, mut v) = (1f64, 0f64, 0f64);
        for t in 1..=5 {
            optimizer.step(&var.tensor().sqr()?.sum_all()?.backward()?)?;
            let g = 2.0 * p;
            m = 0.9 * m + 0.1 * g;
            v = 0.999 * v + 0.001 * g * g;
            p -= 0.1 * (m / (1.0 - 0.9f64.powi(t))) / ((v / (1.0 - 0.999f64.powi(t))).sqrt() + 1e-8);
            let ours = var.tensor().to_vec1::<f64>()?[0];
            assert!((ours - p).abs() < 1e-12, "step {t}: {ours} against {p}");
        }
        Ok(())
    }

    /// Variables that get gradients in different steps take the steps that each would have taken alone.
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
        for (step, (of_a, of_b)) in plan.into_iter().enumerate() {
            let mut total = Tensor::zeros((), candle_core::DType::F64, &Device::Cpu)?;
            for (var, on) in [(&a, of_a), (&b, of_b)] {
                if on {
                    total = (total + loss(var)?)?;
                }
            }
            together.step(&total.backward()?)?;
            // What was saved is taken up by another one in the middle.
            if step == 1 {
                let mut fresh = Optimizer::new(&config, vec![a.clone(), b.clone()])?;
                fresh.restore(&together.state()?)?;
                together = fresh;
            }
        }
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
    fn rates_that_are_no_numbers_are_refused() {
        for lr in [f64::NAN, 0.0, -1.0, f64::INFINITY] {
            let error = OptimizerConfig { lr, ..Default::default() }.validate();
            assert!(error.is_err_and(|e| e.to_string().contains("`lr = ")));
        }
    }
}
