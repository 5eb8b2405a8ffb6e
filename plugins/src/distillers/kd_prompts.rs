//! KD-prompts (Zhang et al., "Continual Distillation Learning", arXiv 2407.13911; called KDP, in later versions D-CDL).
//!
//! Gives the student prompts for distillation that all tasks share and that are never reset: one extra token (the KD
//! token) at the input, and keys and values appended in every later block. A second head on the KD token is trained to
//! match the teacher; the learner's head on the CLS token is trained on the labels. The prediction combines both.

use cdl_core::prelude::*;

use super::kd::KdConfig;

/// Settings of `kd_prompts`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct KdPromptsConfig {
    /// Weight of the distillation term in the loss, and of the second head in the prediction. Cross-entropy and the
    /// learner's head are weighted by `1 - alpha`.
    pub alpha: f64,
    /// Softmax temperature. Higher values give softer targets.
    pub temperature: f64,
    /// Number of blocks with distillation prompts, counted from the first. The first block gets the KD token. A number
    /// above the student's depth means all blocks.
    pub layers: usize,
    /// Rows of a prompt in the blocks after the first. The first half are keys, the second half values.
    pub length: usize,
}

impl Default for KdPromptsConfig {
    fn default() -> Self {
        Self { alpha: 0.5, temperature: 2.0, layers: 12, length: 6 }
    }
}

cdl_core::register!(Distiller {
    name: "kd_prompts",
    about: "KD-prompts (KDP, D-CDL): prompts and a second head for distillation, shared by all tasks",
    citation: "Zhang et al., 2024, arXiv:2407.13911",
    config: KdPromptsConfig,
    build: |config, context| Ok(Box::new(KdPrompts::new(config, context)?) as Box<dyn Distiller>),
});

struct KdPrompts {
    kd: KdConfig,
    /// KD token `(1, D)`, followed by the prompts `(L, D)` of blocks 1, 2, ...
    prompts: Vec<NamedVar>,
    /// Head on the KD token.
    head: Box<dyn Head>,
}

impl KdPrompts {
    fn new(config: KdPromptsConfig, context: &DistillerContext<'_>) -> Result<Self> {
        let KdPromptsConfig { alpha, temperature, layers, length } = config;
        let kd = KdConfig { alpha, temperature };
        kd.validate()?;
        if layers == 0 {
            return Err(Error::setting("layers", 0, "expected at least 1"));
        }
        ranges::halves("length", length)?;
        let mut rng = context.rng.clone();
        let width = context.student.width;
        let mut prompts = Vec::new();
        for layer in 0..layers.min(context.student.depth) {
            let (mut rng, rows) = (rng.derive(&layer.to_string()), if layer == 0 { 1 } else { length });
            let value = rng.uniform(&[rows, width], 0.0, 1.0, context.device)?;
            prompts.push(NamedVar::new(format!("kd_prompt.kd_p_{layer}"), &value)?);
        }
        Ok(Self { kd, prompts, head: context.learner.new_head("kd_last", &mut rng)? })
    }

    /// Returns the logits `(B, C)` of the KD token, the last of the injected tokens.
    fn kd_logits(&self, features: &Features) -> Result<Tensor> {
        let tokens = features.tokens.as_ref().ok_or_else(|| Error::State {
            owner: "kd_prompts".into(),
            reason: "the backbone returned no injected tokens".into(),
        })?;
        self.head.logits(&tokens.narrow(1, tokens.dim(1)? - 1, 1)?.squeeze(1)?)
    }
}

impl Distiller for KdPrompts {
    fn cross_entropy_weight(&self) -> f64 {
        1.0 - self.kd.alpha
    }

    fn inject(&self, _pass: Pass) -> Result<Injection> {
        let mut injection = Injection::none();
        for (layer, prompts) in self.prompts.iter().enumerate() {
            let prompts = prompts.tensor().unsqueeze(0)?; // (1, 1 or L, D)
            match layer {
                0 => injection.tokens = Some(prompts),
                _ => injection.block_mut(layer).suffix = Some(Kv::halves(&prompts)?),
            }
        }
        Ok(injection)
    }

    fn loss(
        &self,
        student: &Output,
        teacher: Option<&Output>,
        _labels: &Tensor,
        task: &Task,
    ) -> Result<Vec<LossTerm>> {
        let kd_logits = self.kd_logits(&student.features)?;
        Ok(vec![self.kd.term(&kd_logits, &require_teacher(teacher)?.logits, task)?])
    }

    fn predicts(&self) -> bool {
        true
    }

    fn predict(&self, student: &Output) -> Result<Tensor> {
        let kd = (self.kd_logits(&student.features)? * self.kd.alpha)?;
        Ok(((&student.logits * (1.0 - self.kd.alpha))? + kd)?)
    }

    fn trainable(&self) -> Vec<NamedVar> {
        self.prompts.iter().cloned().chain(self.head.trainable()).collect()
    }
}
