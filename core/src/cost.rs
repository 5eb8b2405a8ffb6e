//! What a network costs: numbers trained, and multiply-adds (MACs) of one image in training and at test.
//!
//! Counted are the matrix products of the frozen networks: patch embedding, queries, keys and values, attention (scores and
//! weighted sums, injected rows included), projections and MLPs, of all tokens in every block. What this program saves of
//! that, in the last block for instance, is not taken off, so that figures compare with those of other programs. A backward
//! pass counts each product of a frozen layer once, for the gradient of its input, since weights have none: from the end down
//! to the first block with a trained prompt or token, and in that block down to what is trained. Heads, losses and the
//! matching of queries with keys are left out; they are a thousandth.

use std::cell::Cell;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::{BackboneSpec, Injection, Pass, Query, QuerySource, Result, Role, Trainer};

/// How much is injected into a pass, for one image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lengths {
    /// Extra tokens.
    pub tokens: usize,
    /// Whether they are trained.
    pub trained_tokens: bool,
    /// By block, from the first; blocks beyond the end get nothing.
    pub blocks: Vec<BlockLengths>,
}

/// How much is injected into one block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BlockLengths {
    /// Keys (and as many values) before and after the image's.
    pub rows: usize,
    /// Whether something is added to the CLS token's key and value.
    pub cls_add: bool,
    /// Whether any of it is trained.
    pub trained: bool,
}

impl Injection {
    /// How much this is, and what of it is trained.
    pub fn lengths(&self) -> Result<Lengths> {
        let block = |block: &crate::BlockInjection| -> Result<BlockLengths> {
            let mut lengths = BlockLengths { cls_add: block.cls_add.is_some(), ..Default::default() };
            for kv in [&block.prefix, &block.suffix].into_iter().flatten() {
                lengths.rows += kv.count()?;
            }
            let mut all = [&block.prefix, &block.suffix, &block.cls_add].into_iter().flatten();
            lengths.trained = all.any(crate::Kv::is_trained);
            Ok(lengths)
        };
        Ok(Lengths {
            tokens: self.token_count()?,
            trained_tokens: self.tokens.as_ref().is_some_and(Tensor::track_op),
            blocks: self.blocks.iter().map(block).collect::<Result<_>>()?,
        })
    }
}

/// Multiply-adds of one image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Macs {
    /// From pixels to features.
    pub forward: u64,
    /// From the gradients of the features to those of what is trained.
    pub backward: u64,
}

/// Sizes of a vision transformer, as far as its cost goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transformer {
    /// Token width `D`.
    pub width: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Width of the MLP's hidden layer.
    pub hidden: usize,
    /// Tokens of an image without injected ones: CLS, registers and patches.
    pub tokens: usize,
    /// Patches of an image.
    pub patches: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
}

impl Transformer {
    /// A plain one of these sizes: no registers, hidden layers of `4 D`.
    pub fn plain(spec: &BackboneSpec) -> Self {
        let &BackboneSpec { width, depth, patch_size, patches, .. } = spec;
        Self { width, depth, hidden: 4 * width, tokens: 1 + patches, patches, patch_size }
    }

    /// Multiply-adds of one image with so much injected.
    pub fn macs(&self, lengths: &Lengths) -> Macs {
        let [d, h, patches, side] =
            [self.width, self.hidden, self.patches, self.patch_size].map(|n| n as u64);
        let (n, extra) = ((self.tokens + lengths.tokens) as u64, lengths.tokens as u64);
        let of = |block: usize| lengths.blocks.get(block).copied().unwrap_or_default();
        let rows = |block: usize| of(block).rows as u64;
        // Products with the weights: queries, keys and values; projection; both layers of the MLP.
        let (qkv, proj, mlp) = (3 * d * d, d * d, 2 * d * h);
        let blocks = 0..self.depth;
        let forward = |block: usize| n * (qkv + proj + mlp) + 2 * n * (n + rows(block)) * d;
        let forward = patches * 3 * side * side * d + blocks.clone().map(forward).sum::<u64>();

        let first = match lengths.trained_tokens {
            true => Some(0),
            false => blocks.clone().find(|&block| of(block).trained),
        };
        let backward = |first: usize| {
            // Of all queries, keys and values: dA, dV, dQ and dK.
            let whole = |block: usize| n * (qkv + proj + mlp) + 4 * n * (n + rows(block)) * d;
            // Of the trained ones alone, injected as tokens (with their queries) or as keys and values.
            let tokens = if lengths.trained_tokens { extra } else { 0 };
            let trained = match of(first) {
                block if block.trained => block.rows as u64 + u64::from(block.cls_add),
                _ => 0,
            };
            let keys = n + rows(first);
            n * (proj + mlp)
                + (n * keys + 2 * n * (tokens + trained) + tokens * keys) * d
                + tokens * qkv
                + (first + 1..self.depth).map(whole).sum::<u64>()
        };
        Macs { forward, backward: first.map_or(0, backward) }
    }
}

/// What one network cost, MACs for one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Numbers that the optimiser holds, the distiller's with the student's; a task may train a part of them.
    pub trained_numbers: u64,
    /// Of a training step.
    pub training_macs: TrainingMacs,
    /// Of a prediction.
    pub inference_macs: InferenceMacs,
}

/// MACs of a training step, for one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainingMacs {
    /// Passes without prompts that make the queries; 0 where no learner asks for one.
    pub query: u64,
    /// The teacher's pass while the student learns; 0 where the distiller needs none.
    pub teacher: u64,
    /// The network's own pass.
    pub forward: u64,
    /// Its gradients.
    pub backward: u64,
    /// All of these.
    pub total: u64,
}

/// MACs of a prediction, for one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InferenceMacs {
    /// The pass without prompts that makes the query; 0 where the learner asks for none.
    pub query: u64,
    /// The network's pass.
    pub forward: u64,
    /// Both.
    pub total: u64,
}

/// One pass of a network: what it costs, and whether its learner asked for the query.
struct Passage {
    macs: Macs,
    asked: bool,
}

impl Trainer {
    /// What the network of `role` costs as it is now.
    ///
    /// # Errors
    /// Methods that cannot say what they inject.
    pub fn cost(&self, role: Role) -> Result<Cost> {
        let numbers = self.trainable(role).iter().map(|var| var.tensor().elem_count() as u64).sum();
        let own = self.passage(role, Pass::Train)?;
        let teacher = match role {
            Role::Student if self.distiller.needs_teacher() => {
                Some(self.passage(Role::Teacher, Pass::Teach)?)
            }
            _ => None,
        };
        let asks = |passage: &Option<Passage>| passage.as_ref().is_some_and(|passage| passage.asked);
        let query = match (own.asked, asks(&teacher)) {
            // Networks that share a query compute it once.
            (true, true) if self.settings.query == QuerySource::Student => self.query_macs(role),
            (own, teacher) => {
                let of = |asked: bool, role: Role| if asked { self.query_macs(role) } else { 0 };
                of(own, role) + of(teacher, Role::Teacher)
            }
        };
        let (teacher, Macs { forward, backward }) =
            (teacher.map_or(0, |teacher| teacher.macs.forward), own.macs);
        let test = self.passage(role, Pass::Test)?;
        let test_query = if test.asked { self.query_macs(role) } else { 0 };
        Ok(Cost {
            trained_numbers: numbers,
            training_macs: TrainingMacs {
                query,
                teacher,
                forward,
                backward,
                total: query + teacher + forward + backward,
            },
            inference_macs: InferenceMacs {
                query: test_query,
                forward: test.macs.forward,
                total: test_query + test.macs.forward,
            },
        })
    }

    /// The pass that makes the query of `role`.
    fn query_macs(&self, role: Role) -> u64 {
        self.querying(role).macs(&Lengths::default()).forward
    }

    /// One image through the network of `role`, as its methods say without computing it: any query will do.
    fn passage(&self, role: Role, pass: Pass) -> Result<Passage> {
        let network = match role {
            Role::Teacher => &self.teacher,
            Role::Student => &self.student,
        };
        let trainable = network.learner.trainable();
        let device = trainable.first().map_or(&Device::Cpu, |var| var.tensor().device());
        let asked = Cell::new(false);
        let ones = Tensor::ones((1, self.querying(role).spec().width), DType::F32, device)?;
        let query = Query::watched(ones, &asked);
        let mut injection = network.learner.inject(&query, pass)?;
        if role == Role::Student {
            injection = injection.merge(self.distiller.inject(pass)?)?;
        }
        let macs = network.backbone.macs(&injection.lengths()?);
        Ok(Passage { macs, asked: asked.get() })
    }
}
