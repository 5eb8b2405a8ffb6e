//! Additive prompt tuning, APT (Chen et al., "Achieving More with Less: Additive Prompt Tuning for Rehearsal-Free
//! Class-Incremental Learning", ICCV 2025, arXiv 2503.07979).
//!
//! Adds one vector to the CLS token's key and one to its value in every block. There are no extra tokens and no query.
//! Each task continues training the vectors of the previous task; evaluation uses their running mean over tasks.

use cdl_core::{kernels, prelude::*};

/// Settings of `apt`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct AptConfig {
    /// Weight of the running mean when a task's prompts are merged into it (`ema_coeff` in the published options). The
    /// first task's prompts are the initial mean.
    pub ema: f64,
    /// Prompts of the teacher while the student is trained. `stale`: the mean over earlier tasks only, because the
    /// published code merges after the student's phase; in the first task the prompts are zero. `merged`: the mean that
    /// includes the current task. Default: `stale` in mode `published`, `merged` in mode `corrected`.
    pub teacher_prompts: Option<TeacherPrompts>,
}

/// Prompts of the teacher while the student is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TeacherPrompts {
    /// Mean over earlier tasks.
    Stale,
    /// Mean over all tasks including the current one.
    Merged,
}

impl Default for AptConfig {
    fn default() -> Self {
        Self { ema: 0.7, teacher_prompts: None }
    }
}

cdl_core::register!(Learner {
    name: "apt",
    about: "APT: one vector added to the CLS token's key and value in every block, averaged over tasks",
    citation: "Chen et al., ICCV 2025, arXiv:2503.07979",
    config: AptConfig,
    build: |config, context| Ok(Box::new(Apt::new(config, context)?) as Box<dyn Learner>),
});

const MERGED: &str = "prompt.global_merged_prompt";

struct Apt {
    role: Role,
    ema: f64,
    teacher_prompts: TeacherPrompts,
    /// Prompts `(2 depth, D)`: rows 2l and 2l + 1 are added to key and value in block l.
    prompts: NamedVar,
    /// Running mean `(2 depth, D)`; `None` before the end of the first task.
    merged: Option<Tensor>,
    head: AptHead,
}

impl Apt {
    fn new(config: AptConfig, context: &LearnerContext<'_>) -> Result<Self> {
        ranges::fraction("ema", config.ema)?;
        let (width, depth, device) = (context.backbone.width, context.backbone.depth, context.device);
        let mut rng = context.rng.clone();
        let prompts = rng.derive("prompts").normal(&[2 * depth, width], 0.02, device)?;
        Ok(Self {
            role: context.role,
            ema: config.ema,
            teacher_prompts: config.teacher_prompts.unwrap_or(match context.mode {
                Mode::Published => TeacherPrompts::Stale,
                Mode::Corrected => TeacherPrompts::Merged,
            }),
            prompts: NamedVar::new("prompt.prompt_tokens", &prompts)?,
            merged: None,
            head: AptHead::of(Linear::new("last", width, context.classes, &mut rng, device)?)?,
        })
    }

    /// Returns the running mean after merging the current prompts.
    fn merge(&self) -> Result<Tensor> {
        let prompts = self.prompts.tensor().detach();
        match &self.merged {
            Some(merged) => Ok(((merged * self.ema)? + (prompts * (1.0 - self.ema))?)?),
            None => Ok(prompts.copy()?),
        }
    }
}

impl Learner for Apt {
    fn inject(&self, _query: &Query<'_>, pass: Pass) -> Result<Injection> {
        let prompts = match (pass, self.teacher_prompts) {
            (Pass::Train, _) => Some(self.prompts.tensor().clone()),
            (Pass::Teach, TeacherPrompts::Merged) => Some(self.merge()?),
            (Pass::Teach | Pass::Test, _) => self.merged.clone(),
        };
        let mut injection = Injection::none();
        // Before the first merge the prompts are zero, which needs no injection.
        let Some(prompts) = prompts else { return Ok(injection) };
        let all = prompts.unsqueeze(0)?; // (1, 2 N, D)
        for block in 0..all.dim(1)? / 2 {
            injection.block_mut(block).cls_add = Some(Kv::rows(&all, 2 * block..2 * block + 2)?);
        }
        Ok(injection)
    }

    fn logits(&self, features: &Features) -> Result<Tensor> {
        self.head.logits(&features.cls)
    }

    fn new_head(&self, name: &str, rng: &mut Rng) -> Result<Box<dyn Head>> {
        Ok(Box::new(AptHead::of(self.head.linear.like(name, rng)?)?))
    }

    fn end_task(&mut self, _task: &Task) -> Result<()> {
        self.merged = Some(self.merge()?);
        Ok(())
    }

    fn quirks(&self) -> Vec<Quirk> {
        match self.role {
            Role::Teacher => vec![("stale_teacher_prompts", self.teacher_prompts == TeacherPrompts::Stale)],
            Role::Student => Vec::new(),
        }
    }

    fn trainable(&self) -> Vec<NamedVar> {
        std::iter::once(self.prompts.clone()).chain(self.head.trainable()).collect()
    }

    fn state(&self) -> Result<StateDict> {
        let mut state = StateDict::of(&self.trainable())?;
        if let Some(merged) = &self.merged {
            state.insert(MERGED, merged.clone());
        }
        Ok(state)
    }

    fn restore(&mut self, task: &Task, state: &StateDict) -> Result<()> {
        state.load_into(&self.trainable())?;
        self.merged = None;
        if task.index > 0 || state.get(MERGED).is_some() {
            let merged = NamedVar::zeros(MERGED, self.prompts.var.dims(), self.prompts.var.device())?;
            state.load_into(std::slice::from_ref(&merged))?;
            self.merged = Some(merged.tensor().detach());
        }
        Ok(())
    }
}

/// Head `LN(token) Ŵᵀ + b`: layer norm (eps 1e-5) without parameters; the forward pass scales rows of `W` to length 1.
struct AptHead {
    linear: Linear,
    ones: Tensor,
    zeros: Tensor,
}

impl AptHead {
    fn of(linear: Linear) -> Result<Self> {
        let (width, device) = (linear.weight().dim(1)?, linear.weight().device());
        let ones = Tensor::ones(width, DType::F32, device)?;
        Ok(Self { zeros: ones.zeros_like()?, ones, linear })
    }
}

impl Head for AptHead {
    fn logits(&self, token: &Tensor) -> Result<Tensor> {
        let token = kernels::layer_norm(token, &self.ones, &self.zeros, 1e-5)?; // (B, D)
        let weight = kernels::l2_normalize(self.linear.weight())?; // (C, D)
        Ok(token.matmul(&weight.t()?)?.broadcast_add(self.linear.bias())?)
    }

    fn trainable(&self) -> Vec<NamedVar> {
        self.linear.trainable()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cdl_core::{
        candle_core::safetensors,
        testing::{Noise, TestBed},
    };

    fn numbers(tensor: &Tensor) -> Result<Vec<f32>> {
        Ok(tensor.flatten_all()?.to_vec1()?)
    }

    /// Uses tokens of so small a variance that an eps of 1e-6 would give a 10 % error (tests/fixtures/golden/make.py).
    #[test]
    fn the_head_has_the_published_eps() -> Result<()> {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/golden/apt_head.safetensors");
        let recorded = safetensors::load(file, &Device::Cpu)?;
        let head = AptHead::of(Linear::new("last", 8, 5, &mut Rng::new(0), &Device::Cpu)?)?;
        for NamedVar { name, var } in head.trainable() {
            var.set(&recorded[name.trim_start_matches("last.")])?;
        }
        let ours = numbers(&head.logits(&recorded["token"])?)?;
        for (ours, expected) in ours.iter().zip(numbers(&recorded["logits"])?) {
            assert!((ours - expected).abs() < 1e-5 * expected.abs().max(1.0), "{ours} against {expected}");
        }
        Ok(())
    }

    #[test]
    fn prompts_are_merged_after_each_task_and_the_teachers_prompts_are_stale_or_merged() -> Result<()> {
        let (bed, stream) = (TestBed::new(0)?, Noise::new(1));
        let query = Query::known(Tensor::zeros((1, 16), DType::F32, &Device::Cpu)?);
        for (teacher_prompts, stale) in [(TeacherPrompts::Stale, true), (TeacherPrompts::Merged, false)] {
            let config = AptConfig { ema: 0.7, teacher_prompts: Some(teacher_prompts) };
            let mut apt = Apt::new(config, &bed.learner_context(Role::Student))?;
            let key = |apt: &Apt, pass| -> Result<Option<Vec<f32>>> {
                let injection = apt.inject(&query, pass)?;
                let added = injection.blocks.first().and_then(|block| block.cls_add.as_ref());
                added.map(|kv| numbers(&kv.k()?)).transpose()
            };
            let first = key(&apt, Pass::Train)?;
            assert_eq!(key(&apt, Pass::Test)?, None, "nothing is merged yet");
            assert_eq!(key(&apt, Pass::Teach)?, first.clone().filter(|_| !stale));
            apt.end_task(&stream.tasks()[0])?;
            assert_eq!(key(&apt, Pass::Test)?, first, "the first task's prompts are the initial mean");

            apt.prompts.var.set(&(apt.prompts.tensor() * 2.0)?.detach())?;
            let merged: Vec<f32> = first.iter().flatten().map(|v| 0.7 * v + 0.3 * 2.0 * v).collect();
            let close = |found: Option<Vec<f32>>, expected: &[f32]| {
                found.unwrap_or_default().iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6)
            };
            let expected = if stale { first.clone().unwrap_or_default() } else { merged.clone() };
            assert!(close(key(&apt, Pass::Teach)?, &expected));
            apt.end_task(&stream.tasks()[1])?;
            assert!(close(key(&apt, Pass::Test)?, &merged));
        }
        Ok(())
    }
}
