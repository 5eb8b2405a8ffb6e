//! Optimisers. Their state is plain tensors, one set for each variable.

use candle_core::{Device, Tensor, backprop::GradStore};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, NamedVar, Result, StateDict, check};

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
    pub fn validate(&self) -> Result<()> {
        for (key, value) in [("momentum", self.momentum), ("beta2", self.beta2), ("alpha", self.alpha)] {
            if !(0.0..1.0).contains(&value) {
                return Err(Error::setting(key, value, "expected 0 or more and below 1"));
            }
        }
        check::positive("lr", self.lr)?;
        check::positive("eps", self.eps)?;
        check::non_negative("weight_decay", self.weight_decay)
    }
}

/// Updates a set of variables from their gradients.
#[derive(Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    lr: f64,
    slots: Vec<Slot>,
}

/// A variable with what the rule remembers of its gradients; tensors appear with the first step.
#[derive(Debug)]
struct Slot {
    var: NamedVar,
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
        let fresh = |var| Slot { var, steps: 0, mean: None, square: None, largest: None };
        let slots = vars.into_iter().map(fresh).collect();
        Ok(Self { config: config.clone(), lr: config.lr, slots })
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
        for slot in &mut self.slots {
            let Some(gradient) = gradients.get(slot.var.tensor()) else { continue };
            // Detached, so that no step's graph outlives it.
            let value = slot.var.tensor().detach();
            let gradient = match self.config.weight_decay {
                0.0 => gradient.detach(),
                decay => (gradient.detach() + (&value * decay)?)?,
            };
            slot.steps += 1;
            let step = match self.config.name {
                OptimizerName::Adam | OptimizerName::Amsgrad => slot.adam(&gradient, &self.config)?,
                OptimizerName::Sgd => slot.momentum(gradient, self.config.momentum)?,
                OptimizerName::Rmsprop => slot.rmsprop(&gradient, &self.config)?,
            };
            slot.var.var.set(&(value - (step * self.lr)?)?)?;
        }
        Ok(())
    }

    /// Everything that [`Optimizer::restore`] needs: of a variable `x`, `x.steps` and, as far as its rule has them,
    /// `x.mean`, `x.square` and `x.largest`.
    pub fn state(&self) -> Result<StateDict> {
        let mut state = StateDict::default();
        for Slot { var: NamedVar { name, .. }, steps, mean, square, largest } in &self.slots {
            state.insert(format!("{name}.steps"), Tensor::new(*steps, &Device::Cpu)?);
            for (part, tensor) in [("mean", mean), ("square", square), ("largest", largest)] {
                if let Some(tensor) = tensor {
                    state.insert(format!("{name}.{part}"), tensor.copy()?);
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
        for Slot { var, steps, mean, square, largest } in &mut self.slots {
            let name = &var.name;
            let wrong = |reason: String| Error::State { owner: format!("optimizer, {name}"), reason };
            let saved =
                state.get(&format!("{name}.steps")).ok_or_else(|| wrong("not in the saved state".into()))?;
            *steps = saved.to_scalar::<u32>()?;
            let parts = [("mean", mean), ("square", square), ("largest", largest)];
            for ((part, tensor), kept) in parts.into_iter().zip(keeps) {
                let saved = state.get(&format!("{name}.{part}"));
                if saved.is_some() != (kept && *steps > 0) {
                    return Err(wrong("saved by another update rule".into()));
                }
                if let Some(saved) = saved.filter(|saved| saved.shape() != var.var.shape()) {
                    let (saved, expected) = (saved.dims(), var.var.dims());
                    return Err(wrong(format!("{part} saved with shape {saved:?}, expected {expected:?}")));
                }
                *tensor = match saved {
                    Some(saved) => Some(saved.to_device(var.var.device())?.to_dtype(var.var.dtype())?),
                    None => None,
                };
            }
        }
        Ok(())
    }
}

impl Slot {
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

    #[test]
    fn rates_that_are_no_numbers_are_refused() {
        for lr in [f64::NAN, 0.0, -1.0, f64::INFINITY] {
            let error = OptimizerConfig { lr, ..Default::default() }.validate();
            assert!(error.is_err_and(|e| e.to_string().contains("`lr = ")));
        }
    }
}
