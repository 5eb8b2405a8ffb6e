//! The network by way of [`ops::fused`](cdl_kernels::fused): a run of blocks is one operation, from one tapped block to
//! the next.

use std::{collections::BTreeMap, sync::Arc};

use candle_core::{DType, Device, Tensor};

use crate::{
    error::Result,
    traits::{BackboneSpec, Injection, Normalization, Taps},
    vit::{
        model::{Block, Linear, Norm, Outputs, Stem},
        prompts::prompts,
    },
};
use cdl_kernels::fused::{self, Blocks, Embedding, Frozen, Input, Tokens};

pub(super) struct Fast {
    embedding: Embedding,
    blocks: Arc<Blocks>,
    depth: usize,
}

impl Fast {
    /// Arranges the weights, block by block, so that only one block's are in memory twice.
    pub(super) fn new(
        stem: Stem,
        blocks: impl Iterator<Item = Result<Block>>,
        spec: &BackboneSpec,
        eps: f64,
        recompute: bool,
    ) -> Result<Self> {
        let numbers = |t: &Tensor| -> Result<Vec<f32>> { Ok(t.flatten_all()?.to_vec1()?) };
        let frozen = |layer: &Linear| Frozen::new(&layer.weight, &layer.bias);
        let norm = |layer: &Norm| -> Result<fused::Norm> {
            Ok(fused::Norm { gamma: numbers(&layer.gamma)?, beta: numbers(&layer.beta)? })
        };
        let arrange = |block: Result<Block>| -> Result<fused::Block> {
            let block = block?;
            Ok(fused::Block {
                norm1: norm(&block.norm1)?,
                qkv: frozen(&block.qkv)?,
                proj: frozen(&block.proj)?,
                norm2: norm(&block.norm2)?,
                fc1: frozen(&block.fc1)?,
                fc2: frozen(&block.fc2)?,
            })
        };
        let normalize = match spec.normalization {
            Normalization::NONE => None,
            Normalization { mean, std } => Some((mean, std.map(|s| 1.0 / s))),
        };
        let embedding = Embedding {
            patch_size: spec.patch_size,
            layer: frozen(&stem.patch)?,
            prefix: numbers(&stem.prefix)?,
            positions: numbers(&stem.positions)?,
            normalize,
        };
        let blocks = blocks.map(arrange).collect::<Result<_>>()?;
        let blocks = Arc::new(Blocks::new(blocks, spec.width, spec.heads, eps, recompute));
        Ok(Self { embedding, blocks, depth: spec.depth })
    }

    /// The same on another set of instructions.
    #[cfg(test)]
    pub(super) fn with_level(self, level: fused::Level) -> Self {
        let blocks = Arc::into_inner(self.blocks).map(|blocks| Arc::new(blocks.with_level(level)));
        #[allow(clippy::expect_used, reason = "a test fails by panicking")]
        Self { blocks: blocks.expect("no pass is under way"), ..self }
    }

    /// The frozen tensors, arranged as they were given.
    pub(super) fn layers(&self) -> Result<(Stem, Vec<Block>)> {
        let linear = |layer: &Frozen| -> Result<Linear> {
            let (weight, bias) = layer.tensors()?;
            Ok(Linear { weight, bias })
        };
        let vector = |values: &[f32]| Tensor::new(values, &Device::Cpu);
        let norm = |layer: &fused::Norm| -> Result<Norm> {
            Ok(Norm { gamma: vector(&layer.gamma)?, beta: vector(&layer.beta)? })
        };
        let block = |block: &fused::Block| -> Result<Block> {
            Ok(Block {
                norm1: norm(&block.norm1)?,
                qkv: linear(&block.qkv)?,
                proj: linear(&block.proj)?,
                norm2: norm(&block.norm2)?,
                fc1: linear(&block.fc1)?,
                fc2: linear(&block.fc2)?,
            })
        };
        let width = self.embedding.layer.outputs();
        let stem = Stem {
            patch: linear(&self.embedding.layer)?,
            prefix: vector(&self.embedding.prefix)?.reshape((1, (), width))?,
            positions: vector(&self.embedding.positions)?.reshape((1, (), width))?,
        };
        Ok((stem, self.blocks.blocks().iter().map(block).collect::<Result<_>>()?))
    }

    pub(super) fn forward(&self, pixels: &Tensor, injection: &Injection, taps: &Taps) -> Result<Outputs> {
        let batch = pixels.dim(0)?;
        let prompts = prompts(injection, self.depth, batch, DType::F32)?;
        let extra = injection.token_count()?;
        let embedded = self.blocks.embed(pixels, &self.embedding, extra)?;
        let tokens = embedded.tokens();
        let last = self.depth - 1;
        // A run ends with every tapped block, and with the last.
        let mut ends: Vec<usize> = taps.blocks.iter().copied().filter(|&block| block < last).collect();
        ends.push(last);
        let (mut start, mut x) = (0, None);
        let mut embedded = Some(embedded);
        let mut tapped = BTreeMap::new();
        for end in ends {
            let everything = end < last || taps.norm || taps.blocks.contains(&end);
            let reads = match everything {
                true => Tokens::All(tokens),
                false => Tokens::At(std::iter::once(0).chain(tokens - extra..tokens).collect()),
            };
            let input = match (&x, embedded.take()) {
                (Some(x), _) => Input::Tokens(x),
                (None, Some(embedded)) => Input::Images(embedded),
                (None, None) => break,
            };
            let y = self.blocks.run(start..end + 1, input, &prompts, reads)?;
            if taps.blocks.contains(&end) {
                tapped.insert(end, y.clone());
            }
            (start, x) = (end + 1, Some(y));
        }
        match x {
            Some(last) => Ok(Outputs { last, tapped }),
            None => Err(candle_core::Error::Msg("a network without blocks".into()).into()),
        }
    }
}
