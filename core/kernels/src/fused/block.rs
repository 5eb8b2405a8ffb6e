//! One frozen block, forward and backward, on panels.
//!
//! Forward: `m = x + proj(attention(norm1(x)))`, `y = m + fc2(gelu(fc1(norm2(m))))`. The backward pass needs queries,
//! keys and values, `m`, the derivative of GELU, and per token the statistics of the norms and the sums of the softmax.
//! It recomputes the attention weights.

use super::{
    call::{Call, Kept, RunContext},
    packed_linear::{PackedLinear, Start},
    panel::{self, Buffer, Tokens},
    panel_attention::{HeadGradients, attend},
    tile::{PANEL, STRIP},
};
use crate::layers::{Block, Norm};

/// Block whose layers are packed for panels.
pub type PanelBlock = Block<PackedLinear, Vec<f32>>;

impl PanelBlock {
    /// Returns the outputs of the tokens in `call.reads` and, if `keep`, the values that the backward pass needs.
    pub fn forward(&self, call: Call<'_>, keep: bool) -> (Buffer, Option<Kept>) {
        let Call { s, x, reads, .. } = call;
        let d = s.width;
        let (all, read) = (s.shares(&Tokens::All(s.tokens)), s.shares(reads));
        let (mut kv, mut stats1, mut q) = (s.take(2 * d, &all), s.take(2, &all), s.take(d, &read));
        let picked = (!matches!(reads, Tokens::All(_))).then(|| s.pick(x, d, reads));
        // If all tokens are read, one pass over them computes queries, keys and values.
        let queries: (&mut [f32], _) = if picked.is_none() { (&mut q, d) } else { (&mut [], 0) };
        all.each([(&mut kv, 2 * d), (&mut stats1, 2), queries], |part, [kv, stats, q]| {
            let _span = tracing::trace_span!("qkv").entered();
            let n = self.norm1.forward(s, part.of(x, d), stats);
            self.qkv.forward(s.level, d..3 * d, &n, part.count, Start::Bias, kv, |_, _, _| {});
            if !q.is_empty() {
                self.qkv.forward(s.level, 0..d, &n, part.count, Start::Bias, q, |_, _, _| {});
            }
        });
        if let Some(x) = &picked {
            let mut stats = s.take(2, &read);
            read.each([(&mut q, d), (&mut stats, 2)], |part, [q, stats]| {
                let n = self.norm1.forward(s, part.of(x, d), stats);
                self.qkv.forward(s.level, 0..d, &n, part.count, Start::Bias, q, |_, _, _| {});
            });
        }
        let x = picked.as_deref().unwrap_or(x);

        let hidden = self.fc1.outputs;
        let (mut y, mut mid) = (s.take(d, &read), s.take(d, &read));
        let (mut stats2, mut log_sums) = (s.take(2, &read), s.take(s.heads, &read));
        let mut slope = keep.then(|| s.take(hidden, &read));
        let slopes = slope.as_deref_mut().map_or((&mut [][..], 0), |slope| (slope, hidden));
        let panels = [(&mut *y, d), (&mut mid, d), (&mut stats2, 2), (&mut log_sums, s.heads), slopes];
        read.each(panels, |part, [y, mid, stats, sums, slope]| {
            let mut attended = s.pool.take(y.len());
            let span = tracing::trace_span!("attention").entered();
            attend(call, part.of(&q, d), (&kv, &all), part, &mut attended, sums);
            drop(span);
            let _span = tracing::trace_span!("projection and MLP").entered();
            let start = Start::BiasAnd(part.of(x, d));
            self.proj.forward(s.level, 0..d, &attended, part.count, start, mid, |_, _, _| {});
            let n = self.norm2.forward(s, mid, stats);
            let mut g = s.pool.take(y.len() / d * hidden);
            self.fc1.forward(s.level, 0..hidden, &n, part.count, Start::Bias, &mut g, |panel, row, rows| {
                let at = (panel * hidden + row) * PANEL;
                panel::gelu(rows, keep.then(|| &mut slope[at..][..STRIP * PANEL]));
            });
            self.fc2.forward(s.level, 0..d, &g, part.count, Start::BiasAnd(mid), y, |_, _, _| {});
        });
        let kept = slope.map(|slope| Kept { stats1, q, kv, log_sums, mid, stats2, slope });
        (y, kept)
    }

    /// Returns the gradients of the `wanted` input tokens, as panels, and of the injected rows, for the gradient `dy`
    /// of the output. For each image, the gradients of the attended rows precede that of the row added to CLS; each has
    /// `2D` elements.
    pub fn backward(
        &self,
        call: Call<'_>,
        kept: &Kept,
        dy: &[f32],
        wanted: Option<&Tokens>,
    ) -> (Option<Buffer>, Vec<f32>) {
        let Call { s, x, share, reads, .. } = call;
        let (d, read, hidden) = (s.width, s.shares(reads), self.fc1.outputs);

        // Backward through the MLP and the projection, token by token.
        let (mut d_mid, mut d_attended) = (s.take(d, &read), s.take(d, &read));
        read.each([(&mut d_mid, d), (&mut d_attended, d)], |part, [d_mid, d_attended]| {
            let _span = tracing::trace_span!("projection and MLP").entered();
            let (dy, slope) = (part.of(dy, d), part.of(&kept.slope, hidden));
            let mut g = s.pool.take(slope.len());
            self.fc2.backward(s.level, 0..d, dy, part.count, &mut g, |panel, row, rows| {
                panel::multiply(rows, &slope[(panel * hidden + row) * PANEL..][..STRIP * PANEL]);
            });
            self.fc1.backward(s.level, 0..hidden, &g, part.count, d_mid, |_, _, _| {});
            self.norm2.backward(part.of(&kept.mid, d), part.of(&kept.stats2, 2), Some(dy), d_mid);
            self.proj.backward(s.level, 0..d, d_mid, part.count, d_attended, |_, _, _| {});
        });

        // Backward through attention, image by image and head by head.
        let heads = HeadGradients::new(call, kept, &d_attended, wanted.is_some());
        let extra = heads.extra(s, share);
        let Some(wanted) = wanted else { return (None, extra) };

        // Backward through queries, keys and values to the block's input.
        let reads_all = matches!(reads, Tokens::All(_));
        let shares = s.shares(wanted);
        let subset = (wanted != &Tokens::All(s.tokens)).then(|| {
            let residual = reads_all.then(|| s.pick(&d_mid, d, wanted));
            (s.pick(x, d, wanted), s.pick(&kept.stats1, 2, wanted), residual)
        });
        let (inputs, stats, residual) = match &subset {
            Some((x, stats, residual)) => (&**x, &**stats, residual.as_deref()),
            None => (x, &*kept.stats1, reads_all.then_some(&*d_mid)),
        };
        let mut dx = s.take(d, &shares);
        let from = if reads_all { 0 } else { d };
        shares.each([(&mut dx, d)], |part, [dx]| {
            let _span = tracing::trace_span!("qkv").entered();
            let rows = 3 * d - from;
            let mut d_qkv = s.pool.take(dx.len() / d * rows);
            if reads_all {
                heads.queries(s, wanted, part, &mut d_qkv, (rows, 0));
            }
            heads.keys(s, wanted, part, &mut d_qkv, (rows, d - from));
            self.qkv.backward(s.level, from..3 * d, &d_qkv, part.count, dx, |_, _, _| {});
            let residual = residual.map(|residual| part.of(residual, d));
            self.norm1.backward(part.of(inputs, d), part.of(stats, 2), residual, dx);
        });
        if !reads_all {
            self.add_read_tokens(call, kept, &heads, &d_mid, wanted, &mut dx);
        }
        (Some(dx), extra)
    }

    /// Adds to `dx` the gradients of the tokens in `call.reads`, through their queries and through the residual
    /// connection around attention.
    fn add_read_tokens(
        &self,
        Call { s, x, reads, .. }: Call<'_>,
        kept: &Kept,
        heads: &HeadGradients,
        d_mid: &[f32],
        wanted: &Tokens,
        dx: &mut [f32],
    ) {
        let (d, read) = (s.width, s.shares(reads));
        let mut gradient = s.take(d, &read);
        let (x, stats) = (s.pick(x, d, reads), s.pick(&kept.stats1, 2, reads));
        read.each([(&mut gradient, d)], |part, [gradient]| {
            let mut d_q = s.pool.take(gradient.len());
            heads.queries(s, &Tokens::All(reads.count()), part, &mut d_q, (d, 0));
            self.qkv.backward(s.level, 0..d, &d_q, part.count, gradient, |_, _, _| {});
            self.norm1.backward(part.of(&x, d), part.of(&stats, 2), Some(part.of(d_mid, d)), gradient);
        });
        let to_layout = s.shares(wanted);
        for index in 0..s.images * reads.count() {
            let (image, position) = (index / reads.count(), reads.position(index % reads.count()));
            let Some(place) = (0..wanted.count()).find(|&place| wanted.position(place) == position) else {
                continue;
            };
            let to = panel::column_mut(&to_layout, dx, d, image * wanted.count() + place);
            to.zip(panel::column(&read, &gradient, d, index)).for_each(|(to, from)| *to += from);
        }
    }
}

impl Norm<Vec<f32>> {
    /// Normalises panels. Writes means and reciprocal standard deviations to `stats`.
    fn forward(&self, s: &RunContext, x: &[f32], stats: &mut [f32]) -> Buffer {
        let mut n = s.pool.take(x.len());
        let (rows, stats) = (s.width * PANEL, stats.chunks_exact_mut(2 * PANEL));
        for ((x, n), stats) in x.chunks_exact(rows).zip(n.chunks_exact_mut(rows)).zip(stats) {
            panel::layer_norm(x, &self.gamma, &self.beta, s.eps, stats, n);
        }
        n
    }

    /// Replaces the gradient of the norm's output in `gradient` by the gradient of its input plus `residual`.
    fn backward(&self, x: &[f32], stats: &[f32], residual: Option<&[f32]>, gradient: &mut [f32]) {
        let rows = self.gamma.len() * PANEL;
        for (number, gradient) in gradient.chunks_exact_mut(rows).enumerate() {
            let residual = residual.map(|residual| &residual[number * rows..][..rows]);
            let stats = &stats[number * 2 * PANEL..][..2 * PANEL];
            panel::layer_norm_backward(&x[number * rows..][..rows], stats, &self.gamma, residual, gradient);
        }
    }
}
