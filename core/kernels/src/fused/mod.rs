//! The frozen blocks of a transformer as one differentiable operation on the CPU, in float32.
//!
//! candle's operations work one at a time on tensors of their own, allocate a gradient for each, and know nothing of
//! what is frozen. Here a run of blocks is one operation: activations stay in panels, a few tokens
//! side by side, which every product takes as they are; memory is used again from step to step; and the backward pass
//! computes the gradients of injected prompts and tokens and of the input where they are wanted, no others:
//!
//! - in the last block, queries, projection and MLP are computed for the tokens that are read alone;
//! - blocks before the first trainable value keep nothing and have no backward pass;
//! - in the first block that has one, gradients reach trainable tokens and prompts, not the constant image tokens.
//!
//! Every value is computed in one fixed order, so results do not depend on the number of threads.

mod attention;
mod block;
mod count;
mod panel;
mod tile;
mod weights;

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Device, Layout, Shape, Tensor};
use rayon::prelude::*;

pub use block::{Block, Norm, Rows};
pub use count::{Rates, multiply_adds, rates};
pub use panel::Tokens;
pub use tile::Level;
pub use weights::Frozen;

use block::{Extra, Kept, Setting, Wanted};
use candle_core::Result;
use panel::{Buffer, Pool, Shares};
use tile::{PANEL, STRIP};
use weights::Start;

/// Whether widths suit the fast path: everything in eights.
pub fn suits(width: usize, hidden: usize, heads: usize) -> bool {
    let whole = |x: usize| x.is_multiple_of(STRIP);
    heads > 0 && width.is_multiple_of(heads) && whole(width / heads) && whole(hidden)
}

/// The frozen blocks of a network.
#[derive(Debug)]
pub struct Blocks {
    blocks: Vec<Block>,
    heads: usize,
    width: usize,
    eps: f32,
    level: Level,
    pool: Arc<Pool>,
    recompute: bool,
}

/// Where a run of blocks begins.
pub enum Input<'a> {
    /// At the embedded images, which are constant.
    Images(Embedded),
    /// At tokens `(B, N, D)` that another run gave.
    Tokens(&'a Tensor),
}

/// How images become tokens.
#[derive(Debug)]
pub struct Embedding {
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// The patch convolution as a linear layer of `3 p p` inputs.
    pub layer: Frozen,
    /// What precedes the patches, `(1 + R, D)` row by row.
    pub prefix: Vec<f32>,
    /// Position embeddings of the patches, `(P, D)` row by row.
    pub positions: Vec<f32>,
    /// Means and reciprocal deviations of the channels, if pixels are normalised.
    pub normalize: Option<([f32; 3], [f32; 3])>,
}

impl Embedding {
    /// Cuts one image `(3, S, S)` into patches: panels of `3 p p` rows.
    fn cut(&self, pixels: &[f32], size: usize, panels: &mut [f32]) {
        let (p, grid) = (self.patch_size, size / self.patch_size);
        let inputs = 3 * p * p;
        for input in 0..inputs {
            let (channel, y, x) = (input / (p * p), input / p % p, input % p);
            let (mean, scale) =
                self.normalize.map_or((0.0, 1.0), |(mean, scale)| (mean[channel], scale[channel]));
            for patch in 0..grid * grid {
                let pixel = (channel * size + patch / grid * p + y) * size + patch % grid * p + x;
                panels[(patch / PANEL * inputs + input) * PANEL + patch % PANEL] =
                    (pixels[pixel] - mean) * scale;
            }
        }
    }
}

/// Embedded images on their way into the first block.
#[derive(Debug)]
pub struct Embedded {
    panels: Buffer,
    images: usize,
    /// Tokens of an image, with room for those that are injected.
    tokens: usize,
    injected: usize,
    /// For which panels are laid out.
    threads: usize,
}

impl Embedded {
    /// Tokens of an image, injected ones included.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

/// What enters a run of blocks.
#[derive(Debug, Clone, Default)]
pub struct Prompts {
    /// Extra tokens `(B, K, D)`, after the image's; only where [`Embedded`] images enter.
    pub tokens: Option<Tensor>,
    /// Keys and values side by side, of all blocks, `(B, R, 2D)`.
    pub rows: Option<Tensor>,
    /// Which rows are whose, a block each.
    pub own: Vec<Rows>,
}

impl Blocks {
    /// Takes the blocks of a network of `width` with `heads` heads. With `recompute`, the backward pass computes a
    /// block's intermediate values again instead of keeping them.
    pub fn new(blocks: Vec<Block>, width: usize, heads: usize, eps: f64, recompute: bool) -> Self {
        let (eps, level, pool) = (eps as f32, Level::best(), Pool::shared());
        Self { blocks, heads, width, eps, level, pool, recompute }
    }

    /// With another set of instructions, one that this machine has.
    pub fn with_level(mut self, level: Level) -> Self {
        assert!(Level::available().contains(&level));
        self.level = level;
        self
    }

    /// The frozen tensors of all blocks.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Embeds images `(B, 3, S, S)` as `by` says, with room for `injected` tokens at the end.
    pub fn embed(&self, pixels: &Tensor, by: &Embedding, injected: usize) -> Result<Embedded> {
        self.pool.begin_pass();
        let (images, _, size, _) = pixels.dims4()?;
        let pixels = pixels.contiguous()?;
        let (storage, layout) = pixels.storage_and_layout();
        let candle_core::Storage::Cpu(storage) = &*storage else {
            return Err(candle_core::Error::Msg("images are not on the CPU".into()).into());
        };
        let pixels = super::slice::<f32>(storage, layout)?;
        let (d, grid) = (self.width, size / by.patch_size);
        let threads = rayon::current_num_threads();
        let (patches, prefix) = (grid * grid, by.prefix.len() / d);
        let tokens = prefix + patches + injected;

        let per_image = panel::panels(patches) * d * PANEL;
        let mut embedded = self.pool.take(images * per_image);
        embedded.par_chunks_exact_mut(per_image).zip(pixels.par_chunks_exact(3 * size * size)).for_each(
            |(embedded, pixels)| {
                let _span = tracing::trace_span!("embedding").entered();
                let inputs = 3 * by.patch_size * by.patch_size;
                let mut cut = self.pool.zeros(panel::panels(patches) * inputs * PANEL);
                by.cut(pixels, size, &mut cut);
                let bias = Start::Bias;
                by.layer.forward(self.level, 0..d, &cut, patches, bias, embedded, |_, _, _| {});
            },
        );
        let shares = Shares::new(images * tokens, threads);
        let mut all = self.pool.zeros(shares.panels() * d * PANEL);
        shares.parts().par_iter().zip(shares.cut(&mut all, d)).for_each(|(part, all)| {
            let _span = tracing::trace_span!("embedding").entered();
            let alone = part.alone();
            for index in 0..part.count {
                let (image, position) = ((part.first + index) / tokens, (part.first + index) % tokens);
                let (panel, column, _) = alone.place(index);
                if position < prefix {
                    set_column(&alone, all, d, index, &by.prefix[position * d..][..d]);
                } else if position < prefix + patches {
                    let patch = position - prefix;
                    let from = &embedded[image * per_image + patch / PANEL * d * PANEL + patch % PANEL..];
                    for channel in 0..d {
                        all[(panel * d + channel) * PANEL + column] =
                            from[channel * PANEL] + by.positions[patch * d + channel];
                    }
                }
            }
        });
        Ok(Embedded { panels: all, images, tokens, injected, threads })
    }

    /// Outputs of block `range.end - 1` for the tokens that `reads` names, `(B, r, D)`.
    pub fn run(
        self: &Arc<Self>,
        range: std::ops::Range<usize>,
        input: Input<'_>,
        prompts: &Prompts,
        reads: Tokens,
    ) -> Result<Tensor> {
        let nothing = Tensor::zeros(1, candle_core::DType::F32, &Device::Cpu)?;
        let (first, tokens, images, embedded, trains_input) = match input {
            Input::Images(embedded) => {
                let given = prompts.tokens.as_ref().unwrap_or(&nothing).contiguous()?;
                let trains = prompts.tokens.as_ref().is_some_and(Tensor::track_op);
                (given, embedded.tokens, embedded.images, Some(embedded), trains)
            }
            Input::Tokens(x) => {
                let (images, tokens, _) = x.dims3()?;
                (x.contiguous()?, tokens, images, None, x.track_op())
            }
        };
        let rows = prompts.rows.as_ref().unwrap_or(&nothing).contiguous()?;
        let wanted = match &embedded {
            _ if !trains_input => Wanted::Nothing,
            Some(embedded) => Wanted::Of(Tokens::At((tokens - embedded.injected..tokens).collect())),
            None => Wanted::Of(Tokens::All(tokens)),
        };
        let trains_rows = rows.track_op();
        let own: Vec<Rows> =
            range.clone().map(|block| prompts.own.get(block).cloned().unwrap_or_default()).collect();
        let keep_from = match (trains_input, trains_rows) {
            (true, _) => Some(0),
            (false, true) => own.iter().position(|rows| !rows.is_empty()),
            (false, false) => None,
        };
        let setting = Setting {
            level: self.level,
            pool: self.pool.clone(),
            threads: embedded.as_ref().map_or_else(rayon::current_num_threads, |embedded| embedded.threads),
            images,
            tokens,
            width: self.width,
            heads: self.heads,
            eps: self.eps,
        };
        let op = Run {
            network: self.clone(),
            range,
            setting,
            embedded: Mutex::new(embedded),
            own,
            rows: prompts.rows.as_ref().map(|rows| rows.dim(1)).transpose()?.unwrap_or(0),
            reads,
            wanted,
            trains_rows,
            keep_from,
            kept: Mutex::new(Vec::new()),
        };
        Ok(first.apply_op2(&rows, op)?)
    }
}

/// Rows of tokens, `width` floats each, into panels from token `first` on.
fn into_panels(shares: &Shares, rows: &[f32], width: usize, first: usize, panels: &mut [f32]) {
    for (index, row) in rows.chunks_exact(width).enumerate() {
        set_column(shares, panels, width, first + index, row);
    }
}

fn set_column(shares: &Shares, panels: &mut [f32], width: usize, token: usize, values: &[f32]) {
    let (panel, column, _) = shares.place(token);
    let to = &mut panels[panel * width * PANEL + column..];
    for (channel, value) in values.iter().enumerate() {
        to[channel * PANEL] = *value;
    }
}

/// Panels of `tokens` tokens as rows.
fn out_of_panels(shares: &Shares, panels: &[f32], width: usize, tokens: usize) -> Vec<f32> {
    let mut rows = vec![0.0; tokens * width];
    for (token, row) in rows.chunks_exact_mut(width).enumerate() {
        let (panel, column, _) = shares.place(token);
        let from = &panels[panel * width * PANEL + column..];
        for (channel, value) in row.iter_mut().enumerate() {
            *value = from[channel * PANEL];
        }
    }
    rows
}

/// A run of blocks on its way through candle's graph: a function of `(tokens, injected rows)`.
struct Run {
    network: Arc<Blocks>,
    range: std::ops::Range<usize>,
    setting: Setting,
    embedded: Mutex<Option<Embedded>>,
    own: Vec<Rows>,
    rows: usize,
    reads: Tokens,
    wanted: Wanted,
    trains_rows: bool,
    /// The first block, counted from the start of the run, that has a backward pass.
    keep_from: Option<usize>,
    /// What each block from there on keeps.
    kept: Mutex<Vec<Step>>,
}

/// A block's input, and what its forward pass kept unless it is to be computed again.
struct Step {
    x: Buffer,
    kept: Option<Kept>,
}

impl Run {
    fn blocks(&self) -> &[Block] {
        &self.network.blocks[self.range.clone()]
    }

    /// The tokens that block `index` of the run gives.
    fn reads(&self, index: usize) -> Tokens {
        match index + 1 == self.range.len() {
            true => self.reads.clone(),
            false => Tokens::All(self.setting.tokens),
        }
    }

    fn extra<'a>(&'a self, index: usize, data: &'a [f32]) -> Extra<'a> {
        Extra { data, rows: self.rows, own: &self.own[index] }
    }

    /// The images with `tokens` at their end, or `tokens` alone, in panels.
    fn input(&self, tokens: &[f32]) -> Buffer {
        let s = &self.setting;
        let shares = s.shares(&Tokens::All(s.tokens));
        let embedded = self.embedded.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Embedded { mut panels, injected, .. }) = embedded else {
            let mut panels = s.pool.zeros(shares.panels() * s.width * PANEL);
            into_panels(&shares, tokens, s.width, 0, &mut panels);
            return panels;
        };
        if injected > 0 {
            for (image, rows) in tokens.chunks_exact(injected * s.width).enumerate() {
                into_panels(&shares, rows, s.width, (image + 1) * s.tokens - injected, &mut panels);
            }
        }
        panels
    }

    /// Gradients of the input, rows of the wanted tokens, and of the injected rows.
    fn backward(&self, dy: &[f32], rows: &[f32]) -> candle_core::Result<(Option<Vec<f32>>, Vec<f32>)> {
        let (s, d) = (&self.setting, self.setting.width);
        let steps = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(first) = self.keep_from else {
            candle_core::bail!("a run of frozen blocks that nothing was to be learned from")
        };
        let mut d_rows = vec![0.0; rows.len()];
        let shares = s.shares(&self.reads);
        let mut gradient = s.pool.zeros(shares.panels() * d * PANEL);
        into_panels(&shares, dy, d, 0, &mut gradient);
        for (index, step) in steps.iter().enumerate().map(|(at, step)| (first + at, step)).rev() {
            let (block, extra, reads) = (&self.blocks()[index], self.extra(index, rows), self.reads(index));
            let again = match &step.kept {
                Some(_) => None,
                None => count::again(|| block.forward(s, &step.x, extra, &reads, true).1),
            };
            let Some(kept) = step.kept.as_ref().or(again.as_ref()) else {
                candle_core::bail!("nothing was kept of a block")
            };
            let wanted = match index == first {
                true => self.wanted.clone(),
                false => Wanted::Of(Tokens::All(s.tokens)),
            };
            let found = block.backward(s, &step.x, extra, &reads, kept, &gradient, &wanted);
            let own = &self.own[index];
            let places: Vec<usize> = own.attended.clone().chain(own.cls).collect();
            for (number, from) in found.extra.chunks_exact(2 * d).enumerate() {
                let (image, place) = (number / places.len(), places[number % places.len()]);
                d_rows[(image * self.rows + place) * 2 * d..][..2 * d].copy_from_slice(from);
            }
            match found.x {
                Some(dx) => gradient = dx,
                None => return Ok((None, d_rows)),
            }
        }
        let Wanted::Of(wanted) = &self.wanted else { return Ok((None, d_rows)) };
        Ok((Some(out_of_panels(&s.shares(wanted), &gradient, d, s.images * wanted.count())), d_rows))
    }
}

impl CustomOp2 for Run {
    fn name(&self) -> &'static str {
        "frozen-blocks"
    }

    fn cpu_fwd(
        &self,
        tokens: &CpuStorage,
        tokens_layout: &Layout,
        rows: &CpuStorage,
        rows_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let s = &self.setting;
        let rows = super::slice::<f32>(rows, rows_layout)?;
        let mut x = self.input(super::slice(tokens, tokens_layout)?);
        let mut kept = Vec::new();
        for (index, block) in self.blocks().iter().enumerate() {
            let keep = self.keep_from.is_some_and(|from| index >= from);
            let store = keep && !self.network.recompute;
            let (y, of_block) = block.forward(s, &x, self.extra(index, rows), &self.reads(index), store);
            let x = std::mem::replace(&mut x, y);
            if keep {
                kept.push(Step { x, kept: of_block });
            }
        }
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = kept;
        let count = self.reads.count();
        let y = out_of_panels(&s.shares(&self.reads), &x, s.width, s.images * count);
        Ok((CpuStorage::F32(y), (s.images, count, s.width).into()))
    }

    fn bwd(
        &self,
        tokens: &Tensor,
        rows: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let gradients = Backward { run: self, tokens: tokens.elem_count(), rows };
        let both = dy.contiguous()?.apply_op1_no_bwd(&gradients)?;
        let of = |tensor: &Tensor, start: usize| {
            both.narrow(0, start, tensor.elem_count())?.reshape(tensor.shape())
        };
        let d_tokens = (self.wanted != Wanted::Nothing).then(|| of(tokens, 0)).transpose()?;
        let d_rows = self.trains_rows.then(|| of(rows, tokens.elem_count())).transpose()?;
        Ok((d_tokens, d_rows))
    }
}

/// The gradients, one after the other, as an operation on that of the output.
struct Backward<'a> {
    run: &'a Run,
    tokens: usize,
    rows: &'a Tensor,
}

impl CustomOp1 for Backward<'_> {
    fn name(&self) -> &'static str {
        "frozen-blocks-backward"
    }

    fn cpu_fwd(&self, dy: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (storage, rows_layout) = self.rows.storage_and_layout();
        let candle_core::Storage::Cpu(storage) = &*storage else {
            candle_core::bail!("injected rows are not on the CPU")
        };
        let rows = super::slice::<f32>(storage, rows_layout)?;
        let (d_tokens, d_rows) = self.run.backward(super::slice(dy, layout)?, rows)?;
        let mut both = d_tokens.unwrap_or_else(|| vec![0.0; self.tokens]);
        both.extend(d_rows);
        let count = both.len();
        Ok((CpuStorage::F32(both), count.into()))
    }
}
