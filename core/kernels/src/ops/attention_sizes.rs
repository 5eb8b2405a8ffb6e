//! Sizes of one attention call, shared by the CPU's and the GPU's version.

use candle_core::{Layout, Result, bail};

/// Images `batch`, `tokens` and injected rows `extra` of each, `width`, `heads` and the width `head` of one.
#[derive(Clone, Copy)]
pub struct Sizes {
    pub batch: usize,
    pub tokens: usize,
    pub extra: usize,
    pub width: usize,
    pub heads: usize,
    pub head: usize,
}

impl Sizes {
    /// Sizes of `qkv` `(B, N, 3D)` with `extra` `(B, P, 2D)`.
    pub fn new(qkv: &Layout, extra: Option<&Layout>, heads: usize) -> Result<Self> {
        let (batch, tokens, triple) = qkv.shape().dims3()?;
        let width = triple / 3;
        if triple % 3 != 0 || heads == 0 || width % heads != 0 {
            bail!("attention with {heads} heads on queries, keys and values of shape {:?}", qkv.dims());
        }
        let rows = match extra.map(|layout| layout.shape().dims3()).transpose()? {
            None => 0,
            Some((b, rows, w)) if b == batch && w == 2 * width => rows,
            Some(dims) => bail!("injected keys and values of shape {dims:?} for {:?}", qkv.dims()),
        };
        Ok(Self { batch, tokens, extra: rows, width, heads, head: width / heads })
    }

    /// Factor of the scores, `1 / √(D/H)`.
    pub fn scale(&self) -> f64 {
        1.0 / (self.head as f64).sqrt()
    }

    /// Keys that each query attends to.
    pub fn keys(&self) -> usize {
        self.extra + self.tokens
    }
}
