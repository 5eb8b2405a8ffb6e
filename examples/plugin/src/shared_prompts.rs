//! `shared_prompts`: prompts shared by all images and all tasks, prepended to the keys and values of the first blocks,
//! and a linear head.

use cdl_core::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Settings of `shared_prompts`. `cdl describe shared_prompts` prints these comments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SharedPromptsConfig {
    /// Number of blocks with prompts, counted from the first.
    pub blocks: usize,
    /// Rows of a block's prompt. The first half are keys, the second half values.
    pub length: usize,
}

impl Default for SharedPromptsConfig {
    fn default() -> Self {
        Self { blocks: 3, length: 8 }
    }
}

cdl_core::register!(Learner {
    name: "shared_prompts",
    about: "Prompts shared by all images and tasks",
    citation: "",
    config: SharedPromptsConfig,
    build: |config, context| Ok(Box::new(SharedPrompts::new(config, context)?) as Box<dyn Learner>),
});

struct SharedPrompts {
    /// Prompts `(1, L, D)`, one for each block.
    prompts: Vec<NamedVar>,
    head: Linear,
    width: usize,
    classes: usize,
    device: Device,
}

impl SharedPrompts {
    fn new(config: SharedPromptsConfig, context: &LearnerContext<'_>) -> Result<Self> {
        ranges::halves("length", config.length)?;
        let (width, classes, device) = (context.backbone.width, context.classes, context.device.clone());
        let mut rng = context.rng.clone();
        // The network may have fewer blocks than the setting.
        let prompts = (0..config.blocks.min(context.backbone.depth))
            .map(|block| {
                let prompt = rng.normal(&[1, config.length, width], 0.02, &device)?;
                NamedVar::new(format!("prompt.p_{block}"), &prompt)
            })
            .collect::<Result<_>>()?;
        let head = Linear::new("last", width, classes, &mut rng, &device)?;
        Ok(Self { prompts, head, width, classes, device })
    }
}

impl Learner for SharedPrompts {
    fn begin_task(&mut self, _task: &Task, _rng: &mut Rng) -> Result<()> {
        Ok(())
    }

    fn inject(&self, _query: &Query<'_>, _pass: Pass) -> Result<Injection> {
        let mut injection = Injection::none();
        for (block, prompt) in self.prompts.iter().enumerate() {
            injection.block_mut(block).prefix = Some(Kv::halves(prompt.tensor())?);
        }
        Ok(injection)
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
        self.prompts.iter().cloned().chain(self.head.trainable()).collect()
    }

    fn state(&self) -> Result<StateDict> {
        StateDict::of(&self.trainable())
    }

    fn restore(&mut self, _task: &Task, state: &StateDict) -> Result<()> {
        state.load_into(&self.trainable())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn shared_prompts_passes_the_conformance_kit() -> cdl_core::error::Result<()> {
        cdl_core::testing::check_learner("shared_prompts", "")
    }
}
