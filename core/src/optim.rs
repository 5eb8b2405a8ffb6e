//! Optimisers. Their state is plain tensors, one set for each variable.

use candle_core::{Tensor, backprop::GradStore};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, NamedVar, Result};

/// Which update rule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerName {
    /// Adam (Kingma and Ba, arXiv 1412.6980).
    #[default]
    Adam,
}

/// The optimiser; a fresh one is made for every task, for teacher and student apart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct OptimizerConfig {
    /// Update rule.
    pub name: OptimizerName,
    /// Learning rate at the start of a task.
    pub lr: f64,
    /// Decay of the running mean of gradients, Adam's beta1.
    pub momentum: f64,
    /// Decay of the running mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the mean square.
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
            eps: 1e-8,
            weight_decay: 0.0,
        }
    }
}

impl OptimizerConfig {
    /// Refuses values that no run can work with.
    pub fn validate(&self) -> Result<()> {
        let check = |key: &str, value: f64, good: bool, expected: &str| {
            if good { Ok(()) } else { Err(Error::setting(key, value, expected)) }
        };
        check("lr", self.lr, self.lr.is_finite() && self.lr > 0.0, "expected a finite number above 0")?;
        let unit = |v: f64| (0.0..1.0).contains(&v);
        check("momentum", self.momentum, unit(self.momentum), "expected 0 or more and below 1")?;
        check("beta2", self.beta2, unit(self.beta2), "expected 0 or more and below 1")?;
        check("eps", self.eps, self.eps.is_finite() && self.eps > 0.0, "expected a finite number above 0")?;
        let decay = self.weight_decay;
        check("weight_decay", decay, decay.is_finite() && decay >= 0.0, "expected a finite number, 0 or more")
    }
}

/// Updates a set of variables from their gradients.
#[derive(Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    lr: f64,
    steps: i32,
    slots: Vec<Slot>,
}

/// A variable with its running means.
#[derive(Debug)]
struct Slot {
    var: NamedVar,
    mean: Tensor,
    square: Tensor,
}

impl Optimizer {
    /// A fresh optimiser at the configured rate.
    pub fn new(config: &OptimizerConfig, vars: Vec<NamedVar>) -> Result<Self> {
        let slots = vars
            .into_iter()
            .map(|var| {
                let zeros = var.tensor().zeros_like()?.detach();
                Ok(Slot { var, mean: zeros.clone(), square: zeros })
            })
            .collect::<Result<_>>()?;
        Ok(Self { config: config.clone(), lr: config.lr, steps: 0, slots })
    }

    /// Sets the rate of the following steps.
    pub fn set_lr(&mut self, lr: f64) {
        self.lr = lr;
    }

    /// One step: `m ← β₁ m + (1-β₁) g`, `v ← β₂ v + (1-β₂) g²`,
    /// `p ← p - lr / (1-β₁ᵗ) · m / (√v / √(1-β₂ᵗ) + ε)`. Variables without a gradient stay as they are.
    pub fn step(&mut self, gradients: &GradStore) -> Result<()> {
        self.steps += 1;
        let OptimizerConfig { momentum, beta2, eps, weight_decay, .. } = self.config;
        let rate = self.lr / (1.0 - momentum.powi(self.steps));
        let root = (1.0 - beta2.powi(self.steps)).sqrt();
        for Slot { var, mean, square } in &mut self.slots {
            let Some(gradient) = gradients.get(var.tensor()) else { continue };
            // Detached, so that no step's graph outlives it.
            let value = var.tensor().detach();
            let gradient = match weight_decay {
                0.0 => gradient.detach(),
                decay => (gradient.detach() + (&value * decay)?)?,
            };
            *mean = ((&*mean * momentum)? + (&gradient * (1.0 - momentum))?)?;
            *square = ((&*square * beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?;
            let update = (&*mean / ((square.sqrt()? / root)? + eps)?)?;
            var.var.set(&(value - (update * rate)?)?)?;
        }
        Ok(())
    }
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
