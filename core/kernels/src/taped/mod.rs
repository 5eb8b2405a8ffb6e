//! Runs of frozen blocks by tensor operations, for every device and type.
//!
//! A run is one operation of candle's graph with an explicit backward pass. It computes only the gradients of the
//! injected rows and, if needed, of its input:
//!
//! - blocks before the first trainable value keep nothing and have no backward pass;
//! - for a constant input, the first block with a backward pass computes only the gradients of its rows;
//! - each gradient inside a block is dropped as soon as it is used, which candle's graph would not do.

mod block;

use std::{
    mem,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::{DType, Result, Tensor};

use crate::{
    blocks::{BlockRows, BlockRunner, Prompts, Reads, Settings, first_trained},
    layers::{Block, Stem},
    ops::{assemble_tokens, patchify},
    tape::{Gradients, Value},
};
use block::{Call, Inner};

/// Frozen blocks of a network, computed by tensor operations.
pub struct TapedBlocks {
    stem: Stem,
    blocks: Arc<Vec<Block>>,
    settings: Settings,
    /// Mean and reciprocal standard deviation, each `(1, 3, 1, 1)`; `None` for no normalisation.
    normalize: Option<(Tensor, Tensor)>,
}

impl TapedBlocks {
    /// Converts the layers to `dtype`, except scale and shift of layer norms: the kernels read them as float32 for bf16
    /// inputs too.
    ///
    /// # Errors
    /// An error in `blocks`, or of a conversion.
    pub fn new<E: From<candle_core::Error>>(
        stem: &Stem,
        blocks: impl IntoIterator<Item = std::result::Result<Block, E>>,
        settings: Settings,
        dtype: DType,
    ) -> std::result::Result<Self, E> {
        // Pixels are float32, except in tests in float64.
        let of_pixels = if dtype == DType::F64 { dtype } else { DType::F32 };
        let channel = |values: [f32; 3]| {
            Tensor::new(&values, stem.prefix.device())?.to_dtype(of_pixels)?.reshape((1, 3, 1, 1))
        };
        let (mean, scale) = settings.normalize.unzip();
        let normalize = mean.map(channel).transpose()?.zip(scale.map(channel).transpose()?);
        let stem = stem.map(|layer| layer.to_dtype(dtype), |embedding| embedding.to_dtype(dtype))?;
        let convert = |block: std::result::Result<Block, E>| {
            Ok(block?.map(|layer| layer.to_dtype(dtype), |vector| Ok(vector.clone()))?)
        };
        let blocks: Vec<Block> = blocks.into_iter().map(convert).collect::<std::result::Result<_, E>>()?;
        Ok(Self { stem, blocks: Arc::new(blocks), settings, normalize })
    }
}

impl BlockRunner for TapedBlocks {
    type Tokens = Tensor;

    fn dtype(&self) -> DType {
        self.stem.prefix.dtype()
    }

    fn embed(&self, pixels: &Tensor, prompts: &Prompts) -> Result<Tensor> {
        let Stem { patch, prefix, positions } = &self.stem;
        let normalize = self.normalize.as_ref();
        let patches = patchify(&pixels.detach(), self.settings.patch_size, normalize, self.dtype())?;
        let x = assemble_tokens(prefix, &patch.value(&patches, None)?, positions)?;
        match &prompts.tokens {
            Some(tokens) => Tensor::cat(&[&x, tokens], 1),
            None => Ok(x),
        }
    }

    fn run(&self, blocks: Range<usize>, x: Tensor, prompts: &Prompts, reads: Reads) -> Result<Tensor> {
        let (rows, shares) = rows_of(prompts, blocks.clone())?;
        let wants_input = x.track_op();
        let trains_rows = rows.as_ref().is_some_and(Tensor::track_op);
        let first = first_trained(wants_input, trains_rows, &shares);
        let run = Run { blocks: self.blocks.clone(), range: blocks, settings: self.settings, shares, reads };
        let detached = rows.as_ref().map(Tensor::detach);
        let (y, kept) = run.forward(&x.detach(), detached.as_ref(), first)?;
        let Some(first) = first else { return Ok(y) };
        let y = {
            let (storage, layout) = y.storage_and_layout();
            Value::new(storage.try_clone(layout)?, y.shape())
        };
        let (kept, injects) = (Mutex::new(kept), rows.is_some());
        // Without rows, the input is a placeholder for them and is not read.
        y.of_both(&x, rows.as_ref().unwrap_or(&x), move |x, rows, _, dy| {
            let rows = injects.then(|| rows.detach());
            let mut kept = mem::take(&mut *kept.lock().unwrap_or_else(PoisonError::into_inner));
            if kept.is_empty() {
                // A first backward pass through this graph has taken the values.
                kept = run.forward(&x.detach(), rows.as_ref(), Some(first))?.1;
            }
            run.backward(kept, first, rows.as_ref(), dy, wants_input)
        })
    }

    fn layers(&self) -> Result<(Stem, Vec<Block>)> {
        Ok((self.stem.clone(), self.blocks.to_vec()))
    }
}

/// Returns the injected rows of `blocks`, and each block's share with indices into these rows.
fn rows_of(prompts: &Prompts, blocks: Range<usize>) -> Result<(Option<Tensor>, Vec<BlockRows>)> {
    let mut shares = prompts.shares_of(blocks);
    let all: Vec<usize> = shares.iter().flat_map(BlockRows::places).collect();
    let (Some(rows), Some(&first), Some(&last)) = (&prompts.rows, all.first(), all.last()) else {
        return Ok((None, shares));
    };
    for share in &mut shares {
        let Range { start, end } = share.attended;
        share.attended = start.saturating_sub(first)..end.saturating_sub(first);
        share.cls = share.cls.map(|at| at - first);
    }
    Ok((Some(rows.narrow(1, first, last + 1 - first)?), shares))
}

/// Run of consecutive blocks.
struct Run {
    /// All blocks of the network.
    blocks: Arc<Vec<Block>>,
    /// Indices of the run's blocks.
    range: Range<usize>,
    settings: Settings,
    /// Each block's share of the run's injected rows.
    shares: Vec<BlockRows>,
    /// Tokens whose output the last block computes.
    reads: Reads,
}

/// Values that one block keeps for the backward pass.
struct Kept {
    /// Input of the block `(B, N, D)`.
    x: Tensor,
    /// Values inside the block; `None` if they are recomputed.
    inner: Option<Inner>,
}

impl Run {
    /// Returns block `index` of the run.
    fn block(&self, index: usize) -> &Block {
        &self.blocks[self.range.start + index]
    }

    /// Returns the inputs of block `index` for `x` `(B, N, D)` and the run's rows `(B, R, 2D)`.
    fn call<'a>(&'a self, index: usize, x: &'a Tensor, rows: Option<&'a Tensor>) -> Call<'a> {
        let Settings { heads, eps, .. } = self.settings;
        let reads = if index + 1 == self.range.len() { self.reads } else { Reads::All };
        Call { heads, eps, x, rows, share: &self.shares[index], reads }
    }

    /// Returns the output `(B, M, D)`, and the values that the blocks from `first` on keep.
    fn forward(
        &self,
        x: &Tensor,
        rows: Option<&Tensor>,
        first: Option<usize>,
    ) -> Result<(Tensor, Vec<Kept>)> {
        let mut kept = Vec::new();
        let mut x = x.contiguous()?;
        for index in 0..self.range.len() {
            let block = self.block(index);
            let inner = block.inner(self.call(index, &x, rows))?;
            let x = mem::replace(&mut x, block.output(&inner)?);
            if first.is_some_and(|first| index >= first) {
                kept.push(Kept { x, inner: Some(inner).filter(|_| !self.settings.recompute) });
            }
        }
        Ok((x, kept))
    }

    /// Returns the gradients of the input, if needed, and of the rows for the gradient `dy` of the output. `kept`
    /// contains the values of the blocks from `first` on.
    fn backward(
        &self,
        mut kept: Vec<Kept>,
        first: usize,
        rows: Option<&Tensor>,
        dy: &Tensor,
        wants_input: bool,
    ) -> Result<Gradients> {
        let mut dy = Some(dy.clone());
        let mut d_rows = Vec::new();
        for index in (first..self.range.len()).rev() {
            let (Some(Kept { x, inner }), Some(d_output)) = (kept.pop(), dy.take()) else { break };
            let (block, call) = (self.block(index), self.call(index, &x, rows));
            let inner = match inner {
                Some(inner) => inner,
                None => block.inner(call)?,
            };
            let (of_block, dx) = block.gradients(call, inner, &d_output, wants_input || index > first)?;
            d_rows.extend(of_block.into_iter().rev());
            dy = dx;
        }
        // The loop went from the last block to the first; rows have the opposite order.
        d_rows.reverse();
        let d_rows = if d_rows.is_empty() { None } else { Some(Tensor::cat(&d_rows, 1)?) };
        Ok((dy, d_rows))
    }
}
