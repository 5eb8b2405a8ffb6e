//! `token_hint`: an extra token of the student that is trained to match the teacher. The token passes through the
//! frozen student together with the image's tokens. A linear layer maps its output to the teacher's CLS token:
//!
//! `α T² KL(teacher ‖ student) + w (1 - cos(W h, CLS_teacher))`, where `h` is the token after the student's final norm.

use cdl_core::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Settings of `token_hint`. `cdl describe token_hint` prints these comments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TokenHintConfig {
    /// Weight of the soft targets. Cross-entropy is weighted by `1 - alpha`.
    pub alpha: f64,
    /// Softmax temperature. Higher values give softer targets.
    pub temperature: f64,
    /// Weight of the cosine distance between the projected token and the teacher's CLS token.
    pub token_weight: f64,
}

impl Default for TokenHintConfig {
    fn default() -> Self {
        Self { alpha: 0.5, temperature: 2.0, token_weight: 0.1 }
    }
}

cdl_core::register!(Distiller {
    name: "token_hint",
    about: "Soft targets, and an extra token of the student that matches the teacher's CLS token",
    citation: "",
    config: TokenHintConfig,
    build: |config, context| Ok(Box::new(TokenHint::new(config, context)?) as Box<dyn Distiller>),
});

struct TokenHint {
    config: TokenHintConfig,
    /// Extra token `(1, 1, Ds)`.
    token: NamedVar,
    /// Linear layer from the student's width `Ds` to the teacher's width `Dt`.
    projection: Linear,
}

impl TokenHint {
    fn new(config: TokenHintConfig, context: &DistillerContext<'_>) -> Result<Self> {
        ranges::fraction("alpha", config.alpha)?;
        ranges::positive("temperature", config.temperature)?;
        ranges::non_negative("token_weight", config.token_weight)?;
        let (student, teacher, device) = (context.student.width, context.teacher.width, context.device);
        let mut rng = context.rng.clone();
        let token = rng.normal(&[1, 1, student], 0.02, device)?;
        Ok(Self {
            config,
            token: NamedVar::new("token_hint.token", &token)?,
            projection: Linear::new("token_hint.projection", student, teacher, &mut rng, device)?,
        })
    }
}

impl Distiller for TokenHint {
    fn cross_entropy_weight(&self) -> f64 {
        1.0 - self.config.alpha
    }

    fn inject(&self, _pass: Pass) -> Result<Injection> {
        Ok(Injection { tokens: Some(self.token.tensor().clone()), ..Injection::none() })
    }

    fn loss(
        &self,
        student: &Output,
        teacher: Option<&Output>,
        _labels: &Tensor,
        task: &Task,
    ) -> Result<Vec<LossTerm>> {
        let teacher = require_teacher(teacher)?;
        let TokenHintConfig { alpha, temperature, token_weight } = self.config;
        let current = |logits: &Tensor| logits.narrow(1, task.classes.start, task.classes.len());
        let soft = kl_divergence(&current(&student.logits)?, &current(&teacher.logits)?, temperature)?;
        let mut terms = vec![LossTerm::new("kd", (soft * (alpha * temperature * temperature))?)];
        if let Some(tokens) = &student.features.tokens {
            let projected = self.projection.forward(&tokens.squeeze(1)?)?; // (B, Dt)
            let distance = cosine(&projected, &teacher.features.cls)?.affine(-1.0, 1.0)?.mean_all()?;
            terms.push(LossTerm::new("token", (distance * token_weight)?));
        }
        Ok(terms)
    }

    fn trainable(&self) -> Vec<NamedVar> {
        std::iter::once(self.token.clone()).chain(self.projection.trainable()).collect()
    }
}

/// Returns the cosines of corresponding rows of `(B, D)` and `(B, D)`: `(B,)`.
fn cosine(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let norm = |x: &Tensor| x.sqr()?.sum(D::Minus1)?.sqrt()?.maximum(1e-12);
    Ok(((a * b)?.sum(D::Minus1)? / (norm(a)? * norm(b)?)?)?)
}

#[cfg(test)]
mod tests {
    #[test]
    fn token_hint_passes_the_conformance_kit() -> cdl_core::error::Result<()> {
        cdl_core::testing::check_distiller("token_hint", "")
    }
}
