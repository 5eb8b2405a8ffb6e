//! A linear head on the frozen CLS token, without prompts: the lower bound that prompt methods are measured against.

use cdl_core::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `linear` has no settings.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LinearConfig {}

cdl_core::register!(Learner {
    name: "linear",
    about: "A linear head without prompts, trained task after task: the lower bound",
    citation: "baseline",
    config: LinearConfig,
    build: |config, context| Ok(Box::new(LinearProbe::new(config, context)?) as Box<dyn Learner>),
});

struct LinearProbe {
    head: Linear,
}

impl LinearProbe {
    fn new(_config: LinearConfig, context: &LearnerContext<'_>) -> Result<Self> {
        let mut rng = context.rng.clone();
        let head = Linear::new("last", context.backbone.width, context.classes, &mut rng, context.device)?;
        Ok(Self { head })
    }
}

impl Learner for LinearProbe {
    fn inject(&self, _query: &Query<'_>, _pass: Pass) -> Result<Injection> {
        Ok(Injection::none())
    }

    fn logits(&self, features: &Features) -> Result<Tensor> {
        self.head.forward(&features.cls)
    }

    fn new_head(&self, name: &str, rng: &mut Rng) -> Result<Box<dyn Head>> {
        Ok(Box::new(self.head.like(name, rng)?))
    }

    fn trainable(&self) -> Vec<NamedVar> {
        self.head.trainable()
    }
}
