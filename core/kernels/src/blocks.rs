//! Runs of frozen blocks: what enters one, what leaves it, and the two operations that a network is made of.

use std::ops::Range;

use candle_core::{DType, Result, Tensor};

use crate::layers::{Block, Stem};

/// Settings of a network that its layers do not show.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Attention heads.
    pub heads: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Epsilon of every layer norm.
    pub eps: f64,
    /// Mean and reciprocal standard deviation of each channel; `None` leaves pixels as they are.
    pub normalize: Option<([f32; 3], [f32; 3])>,
    /// Compute a block's intermediate values again in the backward pass instead of keeping them.
    pub recompute: bool,
}

/// Prompts of one forward pass.
#[derive(Debug, Clone, Default)]
pub struct Prompts {
    /// Extra tokens `(B, K, D)`, which follow the image's.
    pub tokens: Option<Tensor>,
    /// Injected keys and values of all blocks, `(B, R, 2D)`, key and value side by side.
    pub rows: Option<Tensor>,
    /// Each block's share of the rows, in the order of the blocks; blocks beyond the end have none.
    pub shares: Vec<BlockRows>,
}

/// One block's share of the injected rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlockRows {
    /// Rows that the block attends to besides the image's tokens.
    pub attended: Range<usize>,
    /// Row that is added to the CLS token's key and value.
    pub cls: Option<usize>,
}

/// Tokens that leave a run of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// All tokens.
    All,
    /// CLS and the last `extra` tokens; the last block computes nothing else.
    ClsAndLast {
        /// Number of tokens at the end.
        extra: usize,
    },
}

/// A way of computing the frozen blocks of a vision transformer.
///
/// Gradients reach the prompts and a run's input where they are tracked, and never a frozen tensor.
pub trait BlockRunner {
    /// Tokens `(B, N, D)` on their way into a run: embedded images, or the output of the run before.
    type Tokens: From<Tensor>;

    /// Type of weights and activations, which prompts must have.
    fn dtype(&self) -> DType;

    /// Embeds images `(B, 3, S, S)`: CLS and registers, the patches with their positions, then the prompts' tokens.
    fn embed(&self, pixels: &Tensor, prompts: &Prompts) -> Result<Self::Tokens>;

    /// Output of the last of `blocks` for the tokens that `reads` names, `(B, M, D)`.
    fn run(&self, blocks: Range<usize>, x: Self::Tokens, prompts: &Prompts, reads: Reads) -> Result<Tensor>;

    /// The frozen tensors as they were given.
    fn layers(&self) -> Result<(Stem, Vec<Block>)>;
}

impl BlockRows {
    /// The block's rows: those attended to, then that of the CLS token.
    pub fn places(&self) -> impl Iterator<Item = usize> {
        self.attended.clone().chain(self.cls)
    }

    /// Whether the block has no row.
    pub fn is_empty(&self) -> bool {
        self.attended.is_empty() && self.cls.is_none()
    }
}

impl Prompts {
    /// The shares of `blocks`, one for each.
    pub(crate) fn shares_of(&self, blocks: Range<usize>) -> Vec<BlockRows> {
        blocks.map(|block| self.shares.get(block).cloned().unwrap_or_default()).collect()
    }
}

/// The first block of a run with these `shares` that needs a backward pass, if any does.
pub(crate) fn first_trained(trains_input: bool, trains_rows: bool, shares: &[BlockRows]) -> Option<usize> {
    match (trains_input, trains_rows) {
        (true, _) => Some(0),
        (false, true) => shares.iter().position(|rows| !rows.is_empty()),
        (false, false) => None,
    }
}
