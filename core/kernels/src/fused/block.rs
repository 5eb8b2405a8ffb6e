//! One frozen block, forward and backward, in panels.
//!
//! Forward: `m = x + proj(attention(norm1(x)))`, `y = m + fc2(gelu(fc1(norm2(m))))`. The backward pass needs the queries,
//! keys and values, `m`, the slope of GELU, and a few numbers for each token. It computes attention weights again.

use rayon::prelude::*;

use super::{
    packed_linear::{PackedLinear, Start},
    panel::{self, Buffer, Tokens},
    panel_attention::{HeadGradients, attend},
    setting::{Extra, Kept, Setting},
    tile::{PANEL, STRIP},
};
use crate::layers::{Block, Norm};

/// A block whose layers are arranged for panels.
pub type PanelBlock = Block<PackedLinear, Vec<f32>>;

/// Tokens whose input gradients are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// No token: the input is constant.
    Nothing,
    /// These tokens.
    Of(Tokens),
}

/// Gradients of a block.
#[derive(Debug)]
pub struct Gradients {
    /// Gradient of the wanted tokens of the input, as panels.
    pub x: Option<Buffer>,
    /// Gradient of this block's injected rows: for each image those attended to, then that of CLS, `2D` each.
    pub extra: Vec<f32>,
}

impl PanelBlock {
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
    fn normed(&self, s: &Setting, norm: &Norm<Vec<f32>>, x: &[f32], stats: &mut [f32]) -> Buffer {
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
        let extra_gradient = heads.extra(s, extra.share);
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
fn norm_backward(
    norm: &Norm<Vec<f32>>,
    x: &[f32],
    stats: &[f32],
    residual: Option<&[f32]>,
    gradient: &mut [f32],
) {
    let rows = norm.gamma.len() * PANEL;
    for (number, gradient) in gradient.chunks_exact_mut(rows).enumerate() {
        let residual = residual.map(|residual| &residual[number * rows..][..rows]);
        let stats = &stats[number * 2 * PANEL..][..2 * PANEL];
        panel::layer_norm_backward(&x[number * rows..][..rows], stats, &norm.gamma, residual, gradient);
    }
}
