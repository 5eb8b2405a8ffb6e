//! A linear head on the frozen CLS token, without prompts: the lower bound that prompt methods are measured against.

use cdl_core::{
    Features, Head, Injection, Learner, LearnerContext, Linear, NamedVar, Pass, Query, Result, Rng,
    StateDict, Task,
    candle_core::{Device, Tensor},
};
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
    width: usize,
    classes: usize,
    device: Device,
}

impl LinearProbe {
    fn new(_config: LinearConfig, context: &LearnerContext<'_>) -> Result<Self> {
        let (width, classes, device) = (context.backbone.width, context.classes, context.device.clone());
        let head = Linear::new("last", width, classes, &mut context.rng.clone(), &device)?;
        Ok(Self { head, width, classes, device })
    }
}

impl Learner for LinearProbe {
    fn begin_task(&mut self, _task: &Task, _rng: &mut Rng) -> Result<()> {
        Ok(())
    }

    fn inject(&self, _query: &Query<'_>, _pass: Pass) -> Result<Injection> {
        Ok(Injection::none())
    }

    fn logits(&self, features: &Features) -> Result<Tensor> {
        self.head.forward(&features.cls)
    }

    fn new_head(&self, name: &str, rng: &mut Rng) -> Result<Box<dyn Head>> {
        Ok(Box::new(Linear::new(name, self.width, self.classes, rng, &self.device)?))
    }

    fn end_task(&mut self, _task: &Task) -> Result<()> {
        Ok(())
    }

    fn trainable(&self) -> Vec<NamedVar> {
        self.head.trainable()
    }

    fn state(&self) -> Result<StateDict> {
        StateDict::of(&self.trainable())
    }

    fn restore(&mut self, _task: &Task, state: &StateDict) -> Result<()> {
        state.load_into(&self.trainable())
    }
}
