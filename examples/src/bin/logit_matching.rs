//! Logit matching: Ba and Caruana, "Do Deep Nets Really Need to be Deep?", NIPS 2014, arXiv 1312.6184.

use cdl_core::prelude::*;

/// Settings of `logit_matching`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
struct LogitMatching {
    /// Weight of the distillation term. Cross-entropy has weight 1.
    beta: f64,
}

impl Default for LogitMatching {
    fn default() -> Self {
        Self { beta: 0.1 }
    }
}

cdl_core::register!(Distiller {
    name: "logit_matching",
    about: "Mean squared error between the logits of student and teacher",
    citation: "Ba and Caruana, NIPS 2014, arXiv:1312.6184",
    config: LogitMatching,
    build: |config, _context| Ok(Box::new(config) as Box<dyn Distiller>),
});

impl Distiller for LogitMatching {
    fn loss(&self, s: &Output, t: Option<&Output>, _labels: &Tensor, task: &Task) -> Result<Vec<LossTerm>> {
        let current = |logits: &Tensor| logits.narrow(1, task.classes.start, task.classes.len()); // (B, classes)
        let difference = (current(&s.logits)? - current(&require_teacher(t)?.logits)?)?;
        Ok(vec![LossTerm::new("logits", (difference.sqr()?.mean_all()? * self.beta)?)])
    }
}

cdl_cli::main!();

#[cfg(test)]
mod tests {
    #[test]
    fn logit_matching_passes_the_conformance_kit() -> cdl_core::error::Result<()> {
        cdl_core::testing::check_distiller("logit_matching", "")
    }
}
