//! Number of multiply-accumulate operations (MACs) of a vision transformer with an injection.

use candle_core::Tensor;

use crate::{
    error::Result,
    traits::{BackboneSpec, BlockInjection, Injection, Kv},
};

/// Lengths of an injection for one image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lengths {
    /// Number of additional tokens.
    pub tokens: usize,
    /// Whether the additional tokens are trained.
    pub trained_tokens: bool,
    /// Lengths of each block, from the first. Blocks beyond the end of the list have no injection.
    pub blocks: Vec<BlockLengths>,
}

/// Lengths of the injection into one block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BlockLengths {
    /// Number of injected keys, equal to the number of injected values.
    pub rows: usize,
    /// Whether vectors are added to key and value of the CLS token.
    pub cls_add: bool,
    /// Whether any injected tensor is trained.
    pub trained: bool,
}

impl Injection {
    /// Returns the lengths of the injection, and which parts are trained.
    pub fn lengths(&self) -> Result<Lengths> {
        let block = |block: &BlockInjection| -> Result<BlockLengths> {
            let mut lengths = BlockLengths { cls_add: block.cls_add.is_some(), ..Default::default() };
            for kv in [&block.prefix, &block.suffix].into_iter().flatten() {
                lengths.rows += kv.count()?;
            }
            let mut all = [&block.prefix, &block.suffix, &block.cls_add].into_iter().flatten();
            lengths.trained = all.any(Kv::is_trained);
            Ok(lengths)
        };
        Ok(Lengths {
            tokens: self.token_count()?,
            trained_tokens: self.tokens.as_ref().is_some_and(Tensor::track_op),
            blocks: self.blocks.iter().map(block).collect::<Result<_>>()?,
        })
    }
}

/// Number of multiply-accumulate operations for one image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Macs {
    /// Forward pass, from pixels to features.
    pub forward: u64,
    /// Backward pass, from the gradients of the features to the gradients of the injected tensors that are trained.
    pub backward: u64,
}

/// Sizes of a vision transformer that determine its cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transformer {
    /// Token width `D`.
    pub width: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Width of the MLP's hidden layer.
    pub hidden: usize,
    /// Tokens of an image without injected tokens: CLS, registers and patches.
    pub tokens: usize,
    /// Patches of an image.
    pub patches: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
}

impl Transformer {
    /// Returns the sizes of a plain transformer: no registers, hidden layers of width `4 D`.
    pub fn plain(spec: &BackboneSpec) -> Self {
        let &BackboneSpec { width, depth, patch_size, patches, .. } = spec;
        Self { width, depth, hidden: 4 * width, tokens: 1 + patches, patches, patch_size }
    }

    /// Returns the multiply-accumulate operations of one image with an injection of these lengths.
    pub fn macs(&self, lengths: &Lengths) -> Macs {
        let [d, h, patches, side] =
            [self.width, self.hidden, self.patches, self.patch_size].map(|n| n as u64);
        let (n, extra) = ((self.tokens + lengths.tokens) as u64, lengths.tokens as u64);
        let injected = |block: usize| lengths.blocks.get(block).copied().unwrap_or_default();
        let rows = |block: usize| injected(block).rows as u64;
        // Products with the weights: queries, keys and values; projection; both layers of the MLP.
        let (qkv, proj, mlp) = (3 * d * d, d * d, 2 * d * h);
        let blocks = 0..self.depth;
        let forward = |block: usize| n * (qkv + proj + mlp) + 2 * n * (n + rows(block)) * d;
        let forward = patches * 3 * side * side * d + blocks.clone().map(forward).sum::<u64>();

        let first = match lengths.trained_tokens {
            true => Some(0),
            false => blocks.clone().find(|&block| injected(block).trained),
        };
        let backward = |first: usize| {
            // The attention gradients dA, dV, dQ and dK of all queries, keys and values.
            let whole = |block: usize| n * (qkv + proj + mlp) + 4 * n * (n + rows(block)) * d;
            // In the first block with trained tensors, only the gradients of these tensors are needed: of tokens (with
            // their queries), or of keys and values.
            let tokens = if lengths.trained_tokens { extra } else { 0 };
            let trained = match injected(first) {
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
