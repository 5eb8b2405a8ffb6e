//! DualPrompt (Wang et al., "DualPrompt: Complementary Prompting for Rehearsal-free Continual Learning", ECCV 2022,
//! arXiv 2204.04799).
//!
//! General prompts in the first two blocks are shared by all tasks and images. Expert prompts in the next three blocks
//! belong to one task each. Training uses the current task's expert prompt and pulls its key towards the query; at
//! test, each image uses the expert prompt with the nearest key.

use cdl_core::prelude::*;

use super::l2p::{cosine, gather_prompts, top_k_indices};

/// Blocks with general prompts and blocks with expert prompts, as published. A shallower network has fewer.
const GENERAL_BLOCKS: [usize; 2] = [0, 1];
const EXPERT_BLOCKS: [usize; 3] = [2, 3, 4];

/// Settings of `dual_prompt`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DualPromptConfig {
    /// Number of expert prompts per block, at least the number of tasks. Task t trains prompt t. Rehearsed images of
    /// earlier tasks train the current task's prompt.
    pub pool: usize,
    /// Rows of an expert prompt. The first half are keys, the second half values.
    pub e_length: usize,
    /// Rows of a general prompt. The first half are keys, the second half values.
    pub g_length: usize,
    /// Expert prompts that an image can select at test. `pool`: all, including those that no task has trained yet, as
    /// published. `seen`: those of the tasks so far. Default: `pool` in mode `published`, `seen` in mode `corrected`.
    pub candidates: Option<Candidates>,
}

/// Expert prompts that an image can select at test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Candidates {
    /// All expert prompts, including untrained ones.
    Pool,
    /// Expert prompts of the tasks so far.
    Seen,
}

impl Default for DualPromptConfig {
    fn default() -> Self {
        Self { pool: 10, e_length: 20, g_length: 6, candidates: None }
    }
}

cdl_core::register!(Learner {
    name: "dual_prompt",
    about: "DualPrompt: general prompts shared by all tasks, and expert prompts for each task",
    citation: "Wang et al., ECCV 2022, arXiv:2204.04799",
    config: DualPromptConfig,
    build: |config, context| Ok(Box::new(DualPrompt::new(config, context)?) as Box<dyn Learner>),
});

/// Expert prompts of one block.
struct Experts {
    block: usize,
    /// Prompts `(M, Le, D)`.
    prompts: NamedVar,
    /// Keys `(M, Dq)`.
    keys: NamedVar,
}

struct DualPrompt {
    candidates: Candidates,
    /// General prompts `(Lg, D)`, each with the index of its block.
    general: Vec<(usize, NamedVar)>,
    experts: Vec<Experts>,
    head: Linear,
    /// Index of the current task.
    task: usize,
}

impl DualPrompt {
    fn new(config: DualPromptConfig, context: &LearnerContext<'_>) -> Result<Self> {
        let DualPromptConfig { pool, e_length, g_length, candidates } = config;
        if pool < context.tasks {
            let expected =
                format!("expected at least one expert prompt for each of the {} tasks", context.tasks);
            return Err(Error::setting("pool", pool, expected));
        }
        ranges::halves("e_length", e_length)?;
        ranges::halves("g_length", g_length)?;
        let mut rng = context.rng.clone();
        let (width, device) = (context.backbone.width, context.device);
        let within = |block: &usize| *block < context.backbone.depth;
        let (mut general, mut experts) = (Vec::new(), Vec::new());
        for block in GENERAL_BLOCKS.into_iter().filter(within) {
            let mut rng = rng.derive(&format!("general {block}"));
            let prompt = rng.uniform(&[g_length, width], 0.0, 1.0, device)?;
            general.push((block, NamedVar::new(format!("prompt.g_p_{block}"), &prompt)?));
        }
        for block in EXPERT_BLOCKS.into_iter().filter(within) {
            let mut rng = rng.derive(&format!("experts {block}"));
            let prompts = rng.uniform(&[pool, e_length, width], 0.0, 1.0, device)?;
            let keys = rng.uniform(&[pool, context.query_width], 0.0, 1.0, device)?;
            let prompts = NamedVar::new(format!("prompt.e_p_{block}"), &prompts)?;
            let keys = NamedVar::new(format!("prompt.e_k_{block}"), &keys)?;
            experts.push(Experts { block, prompts, keys });
        }
        let head = Linear::new("last", width, context.classes, &mut rng, device)?;
        let candidates = candidates.unwrap_or(match context.mode {
            Mode::Published => Candidates::Pool,
            Mode::Corrected => Candidates::Seen,
        });
        Ok(Self { candidates, general, experts, head, task: 0 })
    }
}

impl Learner for DualPrompt {
    fn begin_task(&mut self, task: &Task, _rng: &mut Rng) -> Result<()> {
        self.task = task.index;
        Ok(())
    }

    fn inject(&self, query: &Query<'_>, pass: Pass) -> Result<Injection> {
        let mut injection = Injection::none();
        for (block, prompt) in &self.general {
            injection.block_mut(*block).prefix = Some(Kv::halves(&prompt.tensor().unsqueeze(0)?)?); // (1, Lg, D)
        }
        let mut penalties = Vec::new();
        for Experts { block, prompts, keys } in &self.experts {
            let (pool, prompts, keys) = (&keys.name, prompts.tensor(), keys.tensor());
            let size = keys.dim(0)?;
            let (chosen, indices) = if pass == Pass::Train {
                let distance = cosine(query.get()?, &keys.narrow(0, self.task, 1)?)?.affine(-1.0, 1.0)?; // (B, 1)
                penalties.push(distance.mean_all()?);
                // All images use the same prompt, (1, Le, D).
                (prompts.narrow(0, self.task, 1)?, Tensor::new(&[[self.task as u32]], keys.device())?)
            } else {
                let keys = match self.candidates {
                    Candidates::Pool => keys.clone(),
                    Candidates::Seen => keys.narrow(0, 0, self.task + 1)?,
                };
                let nearest = top_k_indices(&cosine(query.get()?, &keys)?, 1)?; // (B, 1)
                (gather_prompts(prompts, &nearest)?.squeeze(1)?, nearest) // (B, Le, D)
            };
            injection.selections.push(Selection::chosen(pool, &indices, size));
            injection.block_mut(*block).prefix = Some(Kv::halves(&chosen)?);
        }
        if !penalties.is_empty() {
            injection.penalty = Some(Tensor::stack(&penalties, 0)?.sum_all()?);
        }
        Ok(injection)
    }

    fn logits(&self, features: &Features) -> Result<Tensor> {
        self.head.forward(&features.cls)
    }

    fn new_head(&self, name: &str, rng: &mut Rng) -> Result<Box<dyn Head>> {
        Ok(Box::new(self.head.like(name, rng)?))
    }

    fn quirks(&self) -> Vec<Quirk> {
        vec![("untrained_candidates", self.candidates == Candidates::Pool)]
    }

    fn trainable(&self) -> Vec<NamedVar> {
        let general = self.general.iter().map(|(_, prompt)| prompt.clone());
        let experts = self.experts.iter().flat_map(|e| [e.prompts.clone(), e.keys.clone()]);
        general.chain(experts).chain(self.head.trainable()).collect()
    }

    fn restore(&mut self, task: &Task, state: &StateDict) -> Result<()> {
        self.task = task.index;
        state.load_into(&self.trainable())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cdl_core::testing;

    /// An untrained key that equals the query is selected among `pool`, but not among `seen`.
    #[test]
    fn candidates_at_test_are_the_pool_or_the_tasks_seen() -> Result<()> {
        let bed = testing::TestBed::new(0)?;
        let config =
            |candidates| DualPromptConfig { pool: 4, candidates: Some(candidates), ..Default::default() };
        for (candidates, untrained) in [(Candidates::Pool, true), (Candidates::Seen, false)] {
            let mut learner = DualPrompt::new(config(candidates), &bed.learner_context(Role::Student))?;
            learner.begin_task(&testing::Noise::new(1).tasks()[1], &mut Rng::new(0))?;
            let query = learner.experts[0].keys.tensor().narrow(0, 3, 1)?;
            let injection = learner.inject(&Query::known(query), Pass::Test)?;
            let injected = injection.blocks[2].prefix.as_ref().map(Kv::k).transpose()?;
            let injected = injected.map(|keys| keys.flatten_all()?.to_vec1::<f32>()).transpose()?;
            let expert = learner.experts[0].prompts.tensor().get(3)?.narrow(0, 0, 10)?.flatten_all()?;
            let same = injected == Some(expert.to_vec1::<f32>()?);
            assert_eq!(same, untrained, "{candidates:?}");
        }
        Ok(())
    }
}
