//! Linear head on the frozen CLS token, without prompts: the lower bound for prompt methods.

use cdl_core::prelude::*;

/// Settings of `linear`, which has none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LinearConfig {}

cdl_core::register!(Learner {
    name: "linear",
    about: "Linear head without prompts, trained task by task: the lower bound",
    citation: "baseline",
    config: LinearConfig,
    build: |_config: LinearConfig, context: &LearnerContext<'_>| {
        let (width, mut rng) = (context.backbone.width, context.rng.clone());
        let head = Linear::new("last", width, context.classes, &mut rng, context.device)?;
        Ok(Box::new(LinearProbe { head }) as Box<dyn Learner>)
    },
});

struct LinearProbe {
    head: Linear,
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
