//! Knowledge distillation (Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531).
//!
//! Matches the student's softened class distribution to the teacher's, over the classes of the current task:
//! `α T² KL(softmax(t/T) ‖ softmax(s/T))`, averaged over the batch.

use cdl_core::prelude::*;

/// Settings of `kd`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct KdConfig {
    /// Weight of the distillation term. Cross-entropy is weighted by `1 - alpha`.
    pub alpha: f64,
    /// Softmax temperature. Higher values give softer targets.
    pub temperature: f64,
}

impl Default for KdConfig {
    fn default() -> Self {
        Self { alpha: 0.5, temperature: 2.0 }
    }
}

cdl_core::register!(Distiller {
    name: "kd",
    about: "Knowledge distillation: soft targets from the teacher's logits",
    citation: "Hinton et al., NIPS Deep Learning Workshop 2014, arXiv:1503.02531",
    config: KdConfig,
    build: |config: KdConfig, _context: &DistillerContext<'_>| {
        config.validate()?;
        Ok(Box::new(config) as Box<dyn Distiller>)
    },
});

impl KdConfig {
    /// Rejects weights outside [0, 1] and temperatures that are not positive.
    pub fn validate(&self) -> Result<()> {
        ranges::fraction("alpha", self.alpha)?;
        ranges::positive("temperature", self.temperature)
    }

    /// Returns the term `α T² KL` for student and teacher logits `(B, C)`, restricted to the current task's classes.
    pub fn term(&self, student: &Tensor, teacher: &Tensor, task: &Task) -> Result<LossTerm> {
        let current = |logits: &Tensor| logits.narrow(1, task.classes.start, task.classes.len());
        let kl = kl_divergence(&current(student)?, &current(teacher)?, self.temperature)?;
        Ok(LossTerm::new("kd", (kl * (self.alpha * self.temperature * self.temperature))?))
    }
}

impl Distiller for KdConfig {
    fn cross_entropy_weight(&self) -> f64 {
        1.0 - self.alpha
    }

    fn loss(
        &self,
        student: &Output,
        teacher: Option<&Output>,
        _labels: &Tensor,
        task: &Task,
    ) -> Result<Vec<LossTerm>> {
        Ok(vec![self.term(&student.logits, &require_teacher(teacher)?.logits, task)?])
    }
}
