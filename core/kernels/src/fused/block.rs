//! One frozen block, forward and backward, in panels.
//!
//! Forward: `m = x + proj(attention(norm1(x)))`, `y = m + fc2(gelu(fc1(norm2(m))))`. What a backward pass needs is kept:
//! queries, keys and values, `m`, the slope of GELU, and a few numbers a token. Attention weights are computed again.

use std::{ops::Range, sync::Arc};

use rayon::prelude::*;

use super::{
    attention::{HeadGradients, attend},
    panel::{self, Buffer, Pool, Shares, Tokens},
    tile::{Level, PANEL, STRIP},
    weights::{Frozen, Start},
};

/// Scale and shift of a layer norm.
#[derive(Debug)]
pub struct Norm {
    /// γ, `(D,)`.
    pub gamma: Vec<f32>,
    /// β, `(D,)`.
    pub beta: Vec<f32>,
}

/// The frozen layers of one block.
#[derive(Debug)]
pub struct Block {
    /// Before attention.
    pub norm1: Norm,
    /// Queries, keys and values, `(3D, D)`.
    pub qkv: Frozen,
    /// Attention's projection.
    pub proj: Frozen,
    /// Before the MLP.
    pub norm2: Norm,
    /// First layer of the MLP.
    pub fc1: Frozen,
    /// Second layer of the MLP.
    pub fc2: Frozen,
}

/// What all blocks and calls of a pass share.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Instructions to compute with.
    pub level: Level,
    /// Where memory comes from.
    pub pool: Arc<Pool>,
    /// Threads that share the work.
    pub threads: usize,
    /// Images `B`.
    pub images: usize,
    /// Tokens `N` of an image, injected ones included.
    pub tokens: usize,
    /// Width `D`.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Of layer norms.
    pub eps: f32,
}

/// Injected keys and values: rows `(B, R, 2D)`, key and value side by side, and which of them are this block's.
#[derive(Debug, Clone, Copy)]
pub struct Extra<'a> {
    /// Of all blocks.
    pub data: &'a [f32],
    /// `R`.
    pub rows: usize,
    /// This block's.
    pub own: &'a Rows,
}

/// A block's rows among the injected ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rows {
    /// Attended to besides the image's tokens.
    pub attended: Range<usize>,
    /// Added to the CLS token's key and value.
    pub cls: Option<usize>,
}

impl Rows {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.attended.is_empty() && self.cls.is_none()
    }
}

/// What the forward pass keeps for the backward pass.
#[derive(Debug)]
pub struct Kept {
    /// Means and deviations of `norm1`, of all tokens.
    stats1: Buffer,
    /// Queries, of the tokens that are read.
    pub q: Buffer,
    /// Keys and values of all tokens.
    pub kv: Buffer,
    /// Logarithms of the sums of exponentials, a row for each head.
    pub log_sums: Buffer,
    /// `m`, and means and deviations of `norm2`.
    mid: Buffer,
    stats2: Buffer,
    /// `gelu'`.
    slope: Buffer,
}

/// Which tokens' input gradients are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// None: the input is constant.
    Nothing,
    /// Those of these tokens.
    Of(Tokens),
}

/// Gradients of a block.
#[derive(Debug)]
pub struct Gradients {
    /// Of the wanted tokens of the input, as panels.
    pub x: Option<Buffer>,
    /// Of this block's injected rows: for each image, [`Rows::attended`] then [`Rows::cls`], `2D` each.
    pub extra: Vec<f32>,
}

impl Setting {
    /// Width of a head.
    pub fn head(&self) -> usize {
        self.width / self.heads
    }

    /// What scores are multiplied with.
    pub fn scale(&self) -> f32 {
        1.0 / (self.head() as f32).sqrt()
    }

    /// Panels of `channels` rows.
    fn take(&self, channels: usize, shares: &Shares) -> Buffer {
        self.pool.take(shares.panels() * channels * PANEL)
    }

    /// Where so many tokens of every image stand.
    pub fn shares(&self, tokens: &Tokens) -> Shares {
        Shares::new(self.images * tokens.count(), self.threads)
    }

    /// The `wanted` tokens out of panels of all.
    fn pick(&self, from: &[f32], channels: usize, wanted: &Tokens) -> Buffer {
        let (all, shares) = (self.shares(&Tokens::All(self.tokens)), self.shares(wanted));
        let per_image = wanted.count();
        let mut to = self.pool.zeros(shares.panels() * channels * PANEL);
        for index in 0..self.images * per_image {
            let (panel, column, _) =
                all.place(index / per_image * self.tokens + wanted.position(index % per_image));
            let (to_panel, to_column, _) = shares.place(index);
            for row in 0..channels {
                to[(to_panel * channels + row) * PANEL + to_column] =
                    from[(panel * channels + row) * PANEL + column];
            }
        }
        to
    }
}

impl Block {
    /// The outputs of the tokens that `reads` names, of `x`, all tokens; and what the backward pass needs if `keep`.
    pub fn forward(
        &self,
        s: &Setting,
        x: &[f32],
        extra: Extra<'_>,
        reads: &Tokens,
        keep: bool,
    ) -> (Buffer, Option<Kept>) {
        let d = s.width;
        let (all, read) = (s.shares(&Tokens::All(s.tokens)), s.shares(reads));
        let everything = matches!(reads, Tokens::All(_));
        let mut kv = s.take(2 * d, &all);
        let mut stats1 = s.take(2, &all);
        let mut q = s.take(d, &read);
        {
            let mut queries = if everything { read.cut(&mut q, d) } else { Vec::new() }.into_iter();
            let pieces = all.cut(&mut kv, 2 * d).into_iter().zip(all.cut(&mut stats1, 2));
            let tasks: Vec<_> = all
                .parts()
                .iter()
                .zip(pieces)
                .map(|(part, (kv, stats))| (part, kv, stats, queries.next()))
                .collect();
            tasks.into_par_iter().for_each(|(part, kv, stats, q)| {
                let _span = tracing::trace_span!("qkv").entered();
                let n = self.normed(s, &self.norm1, part.of(x, d), stats);
                self.qkv.forward(s.level, d..3 * d, &n, part.count, Start::Bias, kv, |_, _, _| {});
                if let Some(q) = q {
                    self.qkv.forward(s.level, 0..d, &n, part.count, Start::Bias, q, |_, _, _| {});
                }
            });
        }
        let picked = (!everything).then(|| s.pick(x, d, reads));
        if let Some(x) = &picked {
            let mut stats = s.take(2, &read);
            let pieces = read.cut(&mut q, d).into_iter().zip(read.cut(&mut stats, 2));
            read.parts().par_iter().zip(pieces.collect::<Vec<_>>()).for_each(|(part, (q, stats))| {
                let n = self.normed(s, &self.norm1, part.of(x, d), stats);
                self.qkv.forward(s.level, 0..d, &n, part.count, Start::Bias, q, |_, _, _| {});
            });
        }
        let x = picked.as_deref().unwrap_or(x);

        let hidden = self.fc1.outputs();
        let mut y = s.take(d, &read);
        let mut mid = s.take(d, &read);
        let mut stats2 = s.take(2, &read);
        let mut log_sums = s.take(s.heads, &read);
        let mut slope = keep.then(|| s.take(hidden, &read));
        {
            let mut slopes =
                slope.as_mut().map(|slope| read.cut(slope, hidden)).unwrap_or_default().into_iter();
            let pieces = read.cut(&mut y, d).into_iter().zip(read.cut(&mut mid, d));
            let sums = read.cut(&mut stats2, 2).into_iter().zip(read.cut(&mut log_sums, s.heads));
            let tasks: Vec<_> = read
                .parts()
                .iter()
                .zip(pieces.zip(sums))
                .map(|(part, pieces)| (part, pieces, slopes.next()))
                .collect();
            tasks.into_par_iter().for_each(|(part, ((y, mid), (stats, sums)), mut slope)| {
                let mut attended = s.pool.take(y.len());
                let span = tracing::trace_span!("attention").entered();
                attend(s, part.of(&q, d), (&kv, &all), extra, part, reads.count(), &mut attended, sums);
                drop(span);
                let _span = tracing::trace_span!("projection and MLP").entered();
                let start = Start::BiasAnd(part.of(x, d));
                self.proj.forward(s.level, 0..d, &attended, part.count, start, mid, |_, _, _| {});
                let n = self.normed(s, &self.norm2, mid, stats);
                let mut g = s.pool.take(y.len() / d * hidden);
                self.fc1.forward(
                    s.level,
                    0..hidden,
                    &n,
                    part.count,
                    Start::Bias,
                    &mut g,
                    |panel, row, rows| {
                        let at = (panel * hidden + row) * PANEL;
                        panel::gelu(rows, slope.as_mut().map(|slope| &mut slope[at..][..STRIP * PANEL]));
                    },
                );
                self.fc2.forward(s.level, 0..d, &g, part.count, Start::BiasAnd(mid), y, |_, _, _| {});
            });
        }
        let kept = slope.map(|slope| Kept { stats1, q, kv, log_sums, mid, stats2, slope });
        (y, kept)
    }

    /// Panels after a layer norm, and the norm's means and deviations.
    fn normed(&self, s: &Setting, norm: &Norm, x: &[f32], stats: &mut [f32]) -> Buffer {
        let mut n = s.pool.take(x.len());
        let rows = s.width * PANEL;
        for ((x, n), stats) in
            x.chunks_exact(rows).zip(n.chunks_exact_mut(rows)).zip(stats.chunks_exact_mut(2 * PANEL))
        {
            panel::layer_norm(x, &norm.gamma, &norm.beta, s.eps, stats, n);
        }
        n
    }

    /// Gradients given `dy`, that of the tokens that were read.
    #[allow(clippy::too_many_arguments, reason = "a layer's call and its gradient, each named once")]
    pub fn backward(
        &self,
        s: &Setting,
        x: &[f32],
        extra: Extra<'_>,
        reads: &Tokens,
        kept: &Kept,
        dy: &[f32],
        wanted: &Wanted,
    ) -> Gradients {
        let (d, read, hidden) = (s.width, s.shares(reads), self.fc1.outputs());

        // Through the MLP and the projection, token by token.
        let mut d_mid = s.take(d, &read);
        let mut d_attended = s.take(d, &read);
        let pieces = read.cut(&mut d_mid, d).into_iter().zip(read.cut(&mut d_attended, d));
        let tasks: Vec<_> = read.parts().iter().zip(pieces).collect();
        tasks.into_par_iter().for_each(|(part, (d_mid, d_attended))| {
            let _span = tracing::trace_span!("projection and MLP").entered();
            let (dy, slope) = (part.of(dy, d), part.of(&kept.slope, hidden));
            let mut g = s.pool.take(slope.len());
            self.fc2.backward(s.level, 0..d, dy, part.count, &mut g, |panel, row, rows| {
                panel::multiply(rows, &slope[(panel * hidden + row) * PANEL..][..STRIP * PANEL]);
            });
            self.fc1.backward(s.level, 0..hidden, &g, part.count, d_mid, |_, _, _| {});
            norm_backward(&self.norm2, part.of(&kept.mid, d), part.of(&kept.stats2, 2), Some(dy), d_mid);
            self.proj.backward(s.level, 0..d, d_mid, part.count, d_attended, |_, _, _| {});
        });

        // Through attention, image by image and head by head.
        let heads = HeadGradients::new(s, extra, reads, kept, &d_attended, wanted != &Wanted::Nothing);
        let extra_gradient = heads.extra(s, extra.own);
        let Wanted::Of(wanted) = wanted else { return Gradients { x: None, extra: extra_gradient } };

        // Through queries, keys and values to the block's input.
        let everything = matches!(reads, Tokens::All(_));
        let shares = s.shares(wanted);
        let subset = (wanted != &Tokens::All(s.tokens)).then(|| {
            let residual = everything.then(|| s.pick(&d_mid, d, wanted));
            (s.pick(x, d, wanted), s.pick(&kept.stats1, 2, wanted), residual)
        });
        let (inputs, stats, residual) = match &subset {
            Some((x, stats, residual)) => (&**x, &**stats, residual.as_deref()),
            None => (x, &*kept.stats1, everything.then_some(&*d_mid)),
        };
        let mut dx = s.take(d, &shares);
        let from = if everything { 0 } else { d };
        let tasks: Vec<_> = shares.parts().iter().zip(shares.cut(&mut dx, d)).collect();
        tasks.into_par_iter().for_each(|(part, dx)| {
            let _span = tracing::trace_span!("qkv").entered();
            let rows = 3 * d - from;
            let mut d_qkv = s.pool.take(dx.len() / d * rows);
            if everything {
                heads.queries(s, wanted, part, &mut d_qkv, rows, 0);
            }
            heads.keys(s, wanted, part, &mut d_qkv, rows, d - from);
            self.qkv.backward(s.level, from..3 * d, &d_qkv, part.count, dx, |_, _, _| {});
            let residual = residual.map(|residual| part.of(residual, d));
            norm_backward(&self.norm1, part.of(inputs, d), part.of(stats, 2), residual, dx);
        });
        if !everything {
            self.add_read(s, x, reads, kept, &heads, &d_mid, wanted, &mut dx);
        }
        Gradients { x: Some(dx), extra: extra_gradient }
    }

    /// What comes to the few tokens that were read by way of their queries and of the sum around attention.
    #[allow(clippy::too_many_arguments)]
    fn add_read(
        &self,
        s: &Setting,
        x: &[f32],
        reads: &Tokens,
        kept: &Kept,
        heads: &HeadGradients,
        d_mid: &[f32],
        wanted: &Tokens,
        dx: &mut [f32],
    ) {
        let (d, read) = (s.width, s.shares(reads));
        let mut gradient = s.take(d, &read);
        let (x, stats) = (s.pick(x, d, reads), s.pick(&kept.stats1, 2, reads));
        let tasks: Vec<_> = read.parts().iter().zip(read.cut(&mut gradient, d)).collect();
        tasks.into_par_iter().for_each(|(part, gradient)| {
            let mut d_q = s.pool.take(gradient.len());
            heads.queries(s, &Tokens::All(reads.count()), part, &mut d_q, d, 0);
            self.qkv.backward(s.level, 0..d, &d_q, part.count, gradient, |_, _, _| {});
            norm_backward(&self.norm1, part.of(&x, d), part.of(&stats, 2), Some(part.of(d_mid, d)), gradient);
        });
        let to_layout = s.shares(wanted);
        for index in 0..s.images * reads.count() {
            let (image, position) = (index / reads.count(), reads.position(index % reads.count()));
            let Some(place) = (0..wanted.count()).find(|&place| wanted.position(place) == position) else {
                continue;
            };
            let (panel, column, _) = read.place(index);
            let (to_panel, to_column, _) = to_layout.place(image * wanted.count() + place);
            for row in 0..d {
                dx[(to_panel * d + row) * PANEL + to_column] += gradient[(panel * d + row) * PANEL + column];
            }
        }
    }
}

/// In panels `gradient`, that of a norm's output; out of it, that of its input plus `residual`.
fn norm_backward(norm: &Norm, x: &[f32], stats: &[f32], residual: Option<&[f32]>, gradient: &mut [f32]) {
    let rows = norm.gamma.len() * PANEL;
    for (number, gradient) in gradient.chunks_exact_mut(rows).enumerate() {
        let residual = residual.map(|residual| &residual[number * rows..][..rows]);
        let stats = &stats[number * 2 * PANEL..][..2 * PANEL];
        panel::layer_norm_backward(&x[number * rows..][..rows], stats, &norm.gamma, residual, gradient);
    }
}
