//! Inputs and kept values of one block's call, shared by the block and its attention.

use std::sync::Arc;

use super::{
    panel::{self, Buffer, Pool, Shares, Tokens},
    tile::{PANEL, SimdLevel},
};
use crate::blocks::BlockRows;

/// Sizes and resources that all blocks of a run share.
#[derive(Debug, Clone)]
pub struct RunContext {
    /// Instruction set of the product kernel.
    pub level: SimdLevel,
    /// Pool of memory for buffers.
    pub pool: Arc<Pool>,
    /// Number of threads.
    pub threads: usize,
    /// Number of images `B`.
    pub images: usize,
    /// Number of tokens `N` of an image, including injected tokens.
    pub tokens: usize,
    /// Width `D` of a token.
    pub width: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Epsilon of layer norms.
    pub eps: f32,
}

/// Input of one block in one pass.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    pub s: &'a RunContext,
    /// Panels of all tokens.
    pub x: &'a [f32],
    /// Injected keys and values of all blocks, `(B, R, 2D)`, key and value side by side.
    pub injected: &'a [f32],
    /// Number of injected rows `R`.
    pub rows: usize,
    /// Share of the injected rows that the block uses.
    pub share: &'a BlockRows,
    /// Tokens whose outputs are computed.
    pub reads: &'a Tokens,
}

/// Values that a block's forward pass keeps for its backward pass.
#[derive(Debug)]
pub struct Kept {
    /// Means and reciprocal standard deviations of `norm1`, for all tokens.
    pub stats1: Buffer,
    /// Queries of the tokens whose outputs are computed.
    pub q: Buffer,
    /// Keys and values of all tokens.
    pub kv: Buffer,
    /// Logarithms of the softmax's sums of exponentials, one row per head.
    pub log_sums: Buffer,
    /// Sum `m` after attention's residual connection.
    pub mid: Buffer,
    /// Means and reciprocal standard deviations of `norm2`.
    pub stats2: Buffer,
    /// Derivative of GELU at the hidden values.
    pub slope: Buffer,
}

impl RunContext {
    /// Returns the width of a head.
    pub fn head(&self) -> usize {
        self.width / self.heads
    }

    /// Returns the factor of the scores, `1 / √(D/H)`.
    pub fn scale(&self) -> f32 {
        1.0 / (self.head() as f32).sqrt()
    }

    /// Takes a buffer for panels of `channels` rows from the pool.
    pub fn take(&self, channels: usize, shares: &Shares) -> Buffer {
        self.pool.take(shares.panels() * channels * PANEL)
    }

    /// Returns the layout of the `tokens` of all images.
    pub fn shares(&self, tokens: &Tokens) -> Shares {
        Shares::new(self.images * tokens.count(), self.threads)
    }

    /// Copies the `wanted` tokens out of panels of all tokens.
    pub fn pick(&self, from: &[f32], channels: usize, wanted: &Tokens) -> Buffer {
        let (all, shares) = (self.shares(&Tokens::All(self.tokens)), self.shares(wanted));
        let per_image = wanted.count();
        let mut to = self.pool.zeros(shares.panels() * channels * PANEL);
        for index in 0..self.images * per_image {
            let token = index / per_image * self.tokens + wanted.position(index % per_image);
            let from = panel::column(&all, from, channels, token);
            panel::column_mut(&shares, &mut to, channels, index).zip(from).for_each(|(to, from)| *to = *from);
        }
        to
    }
}
