//! Interface of frozen blocks, [`BlockRunner`], with the inputs and outputs of a run of consecutive blocks.

use std::ops::Range;

use candle_core::{DType, Result, Tensor};

use crate::layers::{Block, Stem};

/// Settings of a network that do not follow from its layers.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Attention heads.
    pub heads: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Epsilon of every layer norm.
    pub eps: f64,
    /// Mean and reciprocal standard deviation of each channel; `None` for no normalisation.
    pub normalize: Option<([f32; 3], [f32; 3])>,
    /// Recompute a block's activations in the backward pass instead of storing them.
    pub recompute: bool,
}

/// Prompts of one forward pass.
#[derive(Debug, Clone, Default)]
pub struct Prompts {
    /// Extra tokens `(B, K, D)`, which follow the image's tokens.
    pub tokens: Option<Tensor>,
    /// Injected keys and values of all blocks, `(B, R, 2D)`, key and value side by side.
    pub rows: Option<Tensor>,
    /// Rows of each block, from the first block on. Blocks beyond the end of the list have none.
    pub shares: Vec<BlockRows>,
}

/// Indices of one block's rows in [`Prompts::rows`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlockRows {
    /// Rows that the block attends to besides the image's tokens.
    pub attended: Range<usize>,
    /// Row added to the CLS token's key and value.
    pub cls: Option<usize>,
}

/// Tokens whose output a run of blocks returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// All tokens.
    All,
    /// CLS token and the last `extra` tokens. The last block computes only these.
    ClsAndLast {
        /// Number of tokens at the end of each image.
        extra: usize,
    },
}

/// Implementation of the frozen blocks of a vision transformer.
///
/// Prompts and inputs of a run receive gradients if they are part of candle's graph. Frozen tensors never do.
///
/// # Errors
/// Methods fail on tensors whose shapes, types or devices do not fit the network.
pub trait BlockRunner {
    /// Input tokens `(B, N, D)` of a run: embedded images, or the output of the previous run.
    type Tokens: From<Tensor>;

    /// Returns the type of weights and activations, which prompts must have.
    fn dtype(&self) -> DType;

    /// Embeds images `(B, 3, S, S)` as tokens: CLS, registers, patches with positions, then the prompts' tokens.
    fn embed(&self, pixels: &Tensor, prompts: &Prompts) -> Result<Self::Tokens>;

    /// Returns the output of the last of `blocks` for the tokens selected by `reads`, `(B, M, D)`.
    fn run(&self, blocks: Range<usize>, x: Self::Tokens, prompts: &Prompts, reads: Reads) -> Result<Tensor>;

    /// Returns the frozen tensors in their original layout.
    fn layers(&self) -> Result<(Stem, Vec<Block>)>;
}

impl BlockRows {
    /// Iterates over the indices of the block's rows: first attended rows, then the row added to the CLS token.
    pub fn places(&self) -> impl Iterator<Item = usize> {
        self.attended.clone().chain(self.cls)
    }

    /// Returns whether the block has no rows.
    pub fn is_empty(&self) -> bool {
        self.attended.is_empty() && self.cls.is_none()
    }
}

impl Prompts {
    /// Returns the rows of each of `blocks`.
    pub(crate) fn shares_of(&self, blocks: Range<usize>) -> Vec<BlockRows> {
        blocks.map(|block| self.shares.get(block).cloned().unwrap_or_default()).collect()
    }
}

/// Returns the index in the run of the first block that needs a backward pass, or `None`.
pub(crate) fn first_trained(trains_input: bool, trains_rows: bool, shares: &[BlockRows]) -> Option<usize> {
    match (trains_input, trains_rows) {
        (true, _) => Some(0),
        (false, true) => shares.iter().position(|rows| !rows.is_empty()),
        (false, false) => None,
    }
}
