//! Run of consecutive blocks as one operation of candle's graph.

use std::{mem, ops::Range, sync::Arc};

use candle_core::{DType, Device, Result, Tensor, bail};

use super::{
    block::PanelBlock,
    call::{Call, Kept, RunContext},
    count,
    packed_linear::PackedLinear,
    panel::{self, Buffer, Pool, Tokens},
    panel_embedding::Embedded,
    tile::{PANEL, SimdLevel},
};
use crate::{
    blocks::{BlockRows, Prompts, Reads, Settings, first_trained},
    layers::Stem,
    storage::on_cpu,
    tape::{Gradients, Value},
};

/// Embedding and blocks of a network, packed for panels.
pub struct Network {
    /// Layers before the blocks; prefix and positions are rows of `D` elements.
    pub stem: Stem<PackedLinear, Vec<f32>>,
    pub blocks: Vec<PanelBlock>,
    pub width: usize,
    pub settings: Settings,
    pub level: SimdLevel,
    pub pool: Arc<Pool>,
}

/// Input tokens of a run of blocks.
pub enum Input {
    /// Embedded images, constant except for the prompts' tokens.
    Images(Embedded),
    /// Output `(B, N, D)` of the previous run.
    Tokens(Tensor),
}

impl From<Tensor> for Input {
    fn from(tokens: Tensor) -> Self {
        Self::Tokens(tokens)
    }
}

impl Network {
    /// See [`BlockRunner::run`](crate::blocks::BlockRunner::run).
    pub fn run(
        self: &Arc<Self>,
        range: Range<usize>,
        input: Input,
        prompts: &Prompts,
        reads: Reads,
    ) -> Result<Tensor> {
        // A placeholder replaces absent tensors, because the operation has two inputs in every case.
        let nothing = Tensor::zeros(1, DType::F32, &Device::Cpu)?;
        let (images, tokens, threads, panels, input) = match input {
            Input::Images(Embedded { panels, images, tokens, prompt_tokens, threads }) => {
                (images, tokens, threads, Some(panels), prompt_tokens)
            }
            Input::Tokens(x) => {
                let (images, tokens, _) = x.dims3()?;
                (images, tokens, rayon::current_num_threads(), None, Some(x))
            }
        };
        // The input tensor contains either the last tokens of each image or all tokens.
        let count = input.as_ref().map_or(Ok(0), |input| input.dim(1))?;
        let input = input.as_ref().unwrap_or(&nothing).contiguous()?;
        let rows = prompts.rows.as_ref().unwrap_or(&nothing).contiguous()?;
        let (trains_input, trains_rows) = (input.track_op(), rows.track_op());
        let wanted = match &panels {
            _ if !trains_input => None,
            Some(_) => Some(Tokens::At((tokens - count..tokens).collect())),
            None => Some(Tokens::All(tokens)),
        };
        let reads = match reads {
            Reads::All => Tokens::All(tokens),
            Reads::ClsAndLast { extra } => {
                Tokens::At([0].into_iter().chain(tokens - extra..tokens).collect())
            }
        };
        let context = RunContext {
            level: self.level,
            pool: self.pool.clone(),
            threads,
            images,
            tokens,
            width: self.width,
            heads: self.settings.heads,
            eps: self.settings.eps as f32,
        };
        let shares = prompts.shares_of(range.clone());
        let run = Run {
            network: self.clone(),
            range,
            context,
            rows: prompts.rows.as_ref().map_or(Ok(0), |rows| rows.dim(1))?,
            all: Tokens::All(tokens),
            reads,
            wanted,
            first: first_trained(trains_input, trains_rows, &shares),
            shares,
        };
        let (y, kept) = {
            on_cpu!(f32: input => tokens, rows => rows);
            run.forward(run.input(panels, tokens, count), rows)
        };
        y.of_both(&input, &rows, move |input, rows, _, dy| run.backward(&kept, input, rows, dy))
    }
}

/// Run of blocks, a function of input tokens and injected rows.
struct Run {
    network: Arc<Network>,
    range: Range<usize>,
    context: RunContext,
    /// Each block's share of the injected rows.
    shares: Vec<BlockRows>,
    /// Number of injected rows `R`.
    rows: usize,
    /// All tokens of an image.
    all: Tokens,
    /// Tokens whose output the last block computes.
    reads: Tokens,
    /// Tokens of the input that get a gradient; `None` for a constant input.
    wanted: Option<Tokens>,
    /// Index in the run of the first block that has a backward pass.
    first: Option<usize>,
}

/// Input of a block, and the values that its forward pass kept; `None` if they are recomputed.
struct BlockMemory {
    x: Buffer,
    kept: Option<Kept>,
}

impl Run {
    /// Returns the inputs of block `index` of the run for panels `x` and `injected` rows.
    fn call<'a>(&'a self, index: usize, x: &'a [f32], injected: &'a [f32]) -> Call<'a> {
        let reads = if index + 1 == self.range.len() { &self.reads } else { &self.all };
        Call { s: &self.context, x, injected, rows: self.rows, share: &self.shares[index], reads }
    }

    /// Returns the input of the run as panels: `panels` of embedded images with the last `count` tokens of each image
    /// set to `tokens`, or, without `panels`, `tokens` alone.
    fn input(&self, panels: Option<Buffer>, tokens: &[f32], count: usize) -> Buffer {
        let s = &self.context;
        let shares = s.shares(&self.all);
        let mut panels = panels.unwrap_or_else(|| s.pool.zeros(shares.panels() * s.width * PANEL));
        if count > 0 {
            for (image, rows) in tokens.chunks_exact(count * s.width).enumerate() {
                panel::into_panels(&shares, rows, s.width, (image + 1) * s.tokens - count, &mut panels);
            }
        }
        panels
    }

    /// Returns the output, and the values that the blocks from `self.first` on keep.
    fn forward(&self, mut x: Buffer, rows: &[f32]) -> (Value, Vec<BlockMemory>) {
        let s = &self.context;
        let mut kept = Vec::new();
        for (index, block) in self.network.blocks[self.range.clone()].iter().enumerate() {
            let keep = self.first.is_some_and(|first| index >= first);
            let store = keep && !self.network.settings.recompute;
            let (y, of_block) = block.forward(self.call(index, &x, rows), store);
            let x = mem::replace(&mut x, y);
            if keep {
                kept.push(BlockMemory { x, kept: of_block });
            }
        }
        let count = self.reads.count();
        let y = panel::out_of_panels(&s.shares(&self.reads), &x, s.width, s.images * count);
        (Value::on_cpu(y, (s.images, count, s.width)), kept)
    }

    /// Returns the gradients of the input `tokens` and of `rows`, each `None` if it is not needed.
    fn backward(
        &self,
        memory: &[BlockMemory],
        tokens: &Tensor,
        rows: &Tensor,
        dy: &Tensor,
    ) -> Result<Gradients> {
        let (s, d) = (&self.context, self.context.width);
        let Some(first) = self.first else {
            bail!("a run of frozen blocks without a trainable value has no backward pass")
        };
        on_cpu!(f32: dy => dy, rows => injected);
        let mut d_rows = vec![0.0; injected.len()];
        let shares = s.shares(&self.reads);
        let mut gradient = s.pool.zeros(shares.panels() * d * PANEL);
        panel::into_panels(&shares, dy, d, 0, &mut gradient);
        for (index, BlockMemory { x, kept }) in (first..self.range.len()).zip(memory).rev() {
            let block = &self.network.blocks[self.range.start + index];
            let call = self.call(index, x, injected);
            let again = if kept.is_none() { count::recompute(|| block.forward(call, true).1) } else { None };
            let Some(kept) = kept.as_ref().or(again.as_ref()) else {
                bail!("the forward pass kept no values of a block")
            };
            let wanted = if index == first { self.wanted.as_ref() } else { Some(&self.all) };
            let (dx, of_block) = block.backward(call, kept, &gradient, wanted);
            let places: Vec<usize> = self.shares[index].places().collect();
            for (number, from) in of_block.chunks_exact(2 * d).enumerate() {
                let (image, place) = (number / places.len(), places[number % places.len()]);
                d_rows[(image * self.rows + place) * 2 * d..][..2 * d].copy_from_slice(from);
            }
            // Only the first block may have no gradient of its input.
            let Some(dx) = dx else { break };
            gradient = dx;
        }
        let d_tokens = self.wanted.as_ref().map(|wanted| {
            let count = s.images * wanted.count();
            let values = panel::out_of_panels(&s.shares(wanted), &gradient, d, count);
            Value::on_cpu(values, tokens.shape()).tensor()
        });
        Ok((d_tokens, rows.track_op().then(|| Value::on_cpu(d_rows, rows.shape()).tensor())))
    }
}
