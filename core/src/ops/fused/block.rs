//! One frozen block, forward and backward, in panels.
//!
//! Forward: `m = x + proj(attention(norm1(x)))`, `y = m + fc2(gelu(fc1(norm2(m))))`. What a backward pass needs is kept:
//! queries, keys and values, `m`, the slope of GELU, and a few numbers a token. Attention weights are computed again.

use std::{ops::Range, sync::Arc};

use rayon::prelude::*;

use super::{
    count,
    panel::{self, Buffer, Pool, Tokens},
    tile::{GROUP, Left, Level, Order, PANEL, Right, STRIP, product},
    weights::{Frozen, Start},
};

/// Panels that a task takes at once: few, so that tasks share evenly among threads; several, so that weights in
/// the cache are used more than once.
const TASK: usize = 8;

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
    /// Queries, of the tokens that are read, and keys and values of all.
    q: Buffer,
    kv: Buffer,
    /// Logarithms of the sums of exponentials, a row for each head.
    log_sums: Buffer,
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
    fn head(&self) -> usize {
        self.width / self.heads
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head() as f32).sqrt()
    }

    fn take(&self, channels: usize, tokens: usize) -> Buffer {
        self.pool.take(panel::panels(tokens) * channels * PANEL)
    }

    /// The `wanted` tokens out of panels of all.
    pub fn pick(&self, from: &[f32], channels: usize, wanted: &Tokens) -> Buffer {
        let per_image = wanted.count();
        let mut to = self.pool.zeros(panel::panels(self.images * per_image) * channels * PANEL);
        for index in 0..self.images * per_image {
            let token = index / per_image * self.tokens + wanted.position(index % per_image);
            let (source, target) = (channels * PANEL * (token / PANEL), channels * PANEL * (index / PANEL));
            for row in 0..channels {
                to[target + row * PANEL + index % PANEL] = from[source + row * PANEL + token % PANEL];
            }
        }
        to
    }
}

/// Cuts panels of `channels` rows into tasks.
fn cut(panels: &mut [f32], channels: usize) -> std::slice::ChunksMut<'_, f32> {
    panels.chunks_mut(TASK * channels * PANEL)
}

/// The part of `panels` that task `number` has.
fn part(panels: &[f32], channels: usize, number: usize) -> &[f32] {
    let start = number * TASK * channels * PANEL;
    &panels[start..(start + TASK * channels * PANEL).min(panels.len())]
}

/// The tokens of task `number`: first and how many.
fn share(tokens: usize, number: usize) -> (usize, usize) {
    let first = number * TASK * PANEL;
    (first, (tokens - first).min(TASK * PANEL))
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
        let (d, all, read) = (s.width, s.images * s.tokens, s.images * reads.count());
        let everything = matches!(reads, Tokens::All(_));
        let mut kv = s.take(2 * d, all);
        let mut stats1 = s.take(2, all);
        let mut q = s.take(d, read);
        {
            let mut queries = cut(&mut q, d);
            let tasks: Vec<_> = cut(&mut kv, 2 * d)
                .zip(cut(&mut stats1, 2))
                .map(|(kv, stats)| (kv, stats, if everything { queries.next() } else { None }))
                .collect();
            tasks.into_par_iter().enumerate().for_each(|(number, (kv, stats, q))| {
                let _span = tracing::trace_span!("qkv").entered();
                let (_, count) = share(all, number);
                let n = self.normed(s, &self.norm1, part(x, d, number), stats);
                self.qkv.forward(s.level, d..3 * d, &n, count, Start::Bias, kv, |_, _, _| {});
                if let Some(q) = q {
                    self.qkv.forward(s.level, 0..d, &n, count, Start::Bias, q, |_, _, _| {});
                }
            });
        }
        let picked = (!everything).then(|| s.pick(x, d, reads));
        if let Some(x) = &picked {
            let mut stats = s.take(2, read);
            let n = self.normed(s, &self.norm1, x, &mut stats);
            self.qkv.forward(s.level, 0..d, &n, read, Start::Bias, &mut q, |_, _, _| {});
        }
        let x = picked.as_deref().unwrap_or(x);

        let hidden = self.fc1.outputs();
        let mut y = s.take(d, read);
        let mut mid = s.take(d, read);
        let mut stats2 = s.take(2, read);
        let mut log_sums = s.take(s.heads, read);
        let mut slope = keep.then(|| s.take(hidden, read));
        {
            let mut slopes = slope.as_mut().map(|slope| cut(slope, hidden));
            let tasks: Vec<_> = cut(&mut y, d)
                .zip(cut(&mut mid, d))
                .zip(cut(&mut stats2, 2))
                .zip(cut(&mut log_sums, s.heads))
                .map(|(((y, mid), stats), sums)| {
                    (y, mid, stats, sums, slopes.as_mut().and_then(Iterator::next))
                })
                .collect();
            tasks.into_par_iter().enumerate().for_each(|(number, (y, mid, stats, sums, mut slope))| {
                let (first, count) = share(read, number);
                let mut attended = s.take(d, count);
                let span = tracing::trace_span!("attention").entered();
                attend(
                    s,
                    part(&q, d, number),
                    &kv,
                    extra,
                    (first, count, reads.count()),
                    &mut attended,
                    sums,
                );
                drop(span);
                let _span = tracing::trace_span!("projection and MLP").entered();
                let start = Start::BiasAnd(part(x, d, number));
                self.proj.forward(s.level, 0..d, &attended, count, start, mid, |_, _, _| {});
                let n = self.normed(s, &self.norm2, mid, stats);
                let mut g = s.take(hidden, count);
                self.fc1.forward(s.level, 0..hidden, &n, count, Start::Bias, &mut g, |panel, row, rows| {
                    let at = (panel * hidden + row) * PANEL;
                    panel::gelu(rows, slope.as_mut().map(|slope| &mut slope[at..][..STRIP * PANEL]));
                });
                self.fc2.forward(s.level, 0..d, &g, count, Start::BiasAnd(mid), y, |_, _, _| {});
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
        let (d, read, hidden) = (s.width, s.images * reads.count(), self.fc1.outputs());

        // Through the MLP and the projection, token by token.
        let mut d_mid = s.take(d, read);
        let mut d_attended = s.take(d, read);
        let tasks: Vec<_> = cut(&mut d_mid, d).zip(cut(&mut d_attended, d)).collect();
        tasks.into_par_iter().enumerate().for_each(|(number, (d_mid, d_attended))| {
            let _span = tracing::trace_span!("projection and MLP").entered();
            let (_, count) = share(read, number);
            let (dy, slope) = (part(dy, d, number), part(&kept.slope, hidden, number));
            let mut g = s.take(hidden, count);
            self.fc2.backward(s.level, 0..d, dy, count, &mut g, |panel, row, rows| {
                panel::multiply(rows, &slope[(panel * hidden + row) * PANEL..][..STRIP * PANEL]);
            });
            self.fc1.backward(s.level, 0..hidden, &g, count, d_mid, |_, _, _| {});
            let (mid, stats) = (part(&kept.mid, d, number), part(&kept.stats2, 2, number));
            norm_backward(&self.norm2, mid, stats, Some(dy), d_mid);
            self.proj.backward(s.level, 0..d, d_mid, count, d_attended, |_, _, _| {});
        });

        // Through attention, image by image and head by head.
        let heads = HeadGradients::new(s, extra, reads, kept, &d_attended, wanted != &Wanted::Nothing);
        let extra_gradient = heads.extra(s, extra.own);
        let Wanted::Of(wanted) = wanted else { return Gradients { x: None, extra: extra_gradient } };

        // Through queries, keys and values to the block's input.
        let everything = matches!(reads, Tokens::All(_));
        let count = s.images * wanted.count();
        let subset = (wanted != &Tokens::All(s.tokens)).then(|| {
            let residual = everything.then(|| s.pick(&d_mid, d, wanted));
            (s.pick(x, d, wanted), s.pick(&kept.stats1, 2, wanted), residual)
        });
        let (inputs, stats, residual) = match &subset {
            Some((x, stats, residual)) => (&**x, &**stats, residual.as_deref()),
            None => (x, &*kept.stats1, everything.then_some(&*d_mid)),
        };
        let mut dx = s.take(d, count);
        let from = if everything { 0 } else { d };
        let tasks: Vec<_> = cut(&mut dx, d).collect();
        tasks.into_par_iter().enumerate().for_each(|(number, dx)| {
            let _span = tracing::trace_span!("qkv").entered();
            let (first, count) = share(count, number);
            let rows = 3 * d - from;
            let mut d_qkv = s.take(rows, count);
            if everything {
                heads.queries(s, wanted, (first, count), &mut d_qkv, rows, 0);
            }
            heads.keys(s, wanted, (first, count), &mut d_qkv, rows, d - from);
            self.qkv.backward(s.level, from..3 * d, &d_qkv, count, dx, |_, _, _| {});
            let residual = residual.map(|residual| part(residual, d, number));
            norm_backward(&self.norm1, part(inputs, d, number), part(stats, 2, number), residual, dx);
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
        let (d, read) = (s.width, s.images * reads.count());
        let mut d_q = s.take(d, read);
        heads.queries(s, &Tokens::All(reads.count()), (0, read), &mut d_q, d, 0);
        let mut gradient = s.take(d, read);
        self.qkv.backward(s.level, 0..d, &d_q, read, &mut gradient, |_, _, _| {});
        let (x, stats) = (s.pick(x, d, reads), s.pick(&kept.stats1, 2, reads));
        norm_backward(&self.norm1, &x, &stats, Some(d_mid), &mut gradient);
        for index in 0..read {
            let (image, position) = (index / reads.count(), reads.position(index % reads.count()));
            let Some(place) = (0..wanted.count()).find(|&place| wanted.position(place) == position) else {
                continue;
            };
            let to = image * wanted.count() + place;
            for row in 0..d {
                dx[(to / PANEL * d + row) * PANEL + to % PANEL] +=
                    gradient[(index / PANEL * d + row) * PANEL + index % PANEL];
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

/// One image's keys and values for one head, channels by keys: injected ones, then the tokens'.
struct Keys {
    k: Buffer,
    v: Buffer,
    /// How many there are, and the distance of rows.
    count: usize,
    stride: usize,
}

impl Keys {
    fn new(s: &Setting, extra: Extra<'_>) -> Self {
        let count = extra.own.attended.len() + s.tokens;
        let stride = count.next_multiple_of(GROUP) + GROUP;
        let take = || s.pool.take(s.head() * stride);
        Self { k: take(), v: take(), count, stride }
    }

    fn read(&mut self, s: &Setting, kv: &[f32], extra: Extra<'_>, image: usize, head: usize) {
        let (d, width) = (s.head(), s.width);
        let injected = extra.own.attended.len();
        for (part, to) in [&mut self.k, &mut self.v].into_iter().enumerate() {
            let at = part * width + head * d;
            for (column, row) in extra.own.attended.clone().enumerate() {
                let from = &extra.data[(image * extra.rows + row) * 2 * width + at..][..d];
                for (channel, value) in from.iter().enumerate() {
                    to[channel * self.stride + column] = *value;
                }
            }
            let tokens = (image * s.tokens, s.tokens);
            panel::gather(kv, 2 * width, at..at + d, tokens, &mut to[injected..], self.stride);
            if let Some(row) = extra.own.cls {
                let from = &extra.data[(image * extra.rows + row) * 2 * width + at..][..d];
                for (channel, value) in from.iter().enumerate() {
                    to[channel * self.stride + injected] += *value;
                }
            }
        }
    }

    fn rows(&self) -> usize {
        self.count.next_multiple_of(STRIP)
    }
}

/// Attention of the `count` tokens from `first` on, `per_image` to an image, whose queries are panels `q`; all keys and
/// values are in `kv`.
fn attend(
    s: &Setting,
    q: &[f32],
    kv: &[f32],
    extra: Extra<'_>,
    (first, count, per_image): (usize, usize, usize),
    y: &mut [f32],
    log_sums: &mut [f32],
) {
    let (d, end) = (s.head(), first + count);
    let mut keys = Keys::new(s, extra);
    let mut scores = s.pool.take(keys.rows() * PANEL);
    let (mut queries, mut result) = (s.pool.take(d * PANEL), s.pool.take(d * PANEL));
    let mut sums = [0.0; PANEL];
    for image in first / per_image..=(end - 1) / per_image {
        let own = (image * per_image).max(first)..((image + 1) * per_image).min(end);
        for head in 0..s.heads {
            keys.read(s, kv, extra, image, head);
            count::add(2 * own.len() * keys.count * d);
            let mut token = own.start;
            while token < own.end {
                let (panel, column) = ((token - first) / PANEL, (token - first) % PANEL);
                let run = (PANEL - column).min(own.end - token);
                let channels = head * d..(head + 1) * d;
                panel::gather(q, s.width, channels.clone(), (token - first, run), &mut queries, PANEL);
                let left = Left { data: &keys.k, order: Order::Columns, stride: keys.stride };
                let right = Right { data: &queries, stride: PANEL };
                product(s.level, (keys.rows(), run, d), left, right, &mut scores, PANEL, false);
                let wide = run.next_multiple_of(GROUP);
                panel::softmax(&mut scores, PANEL, (keys.count, wide), s.scale(), &mut sums);
                let left = Left { data: &keys.v, order: Order::Rows, stride: keys.stride };
                let right = Right { data: &scores, stride: PANEL };
                product(s.level, (d, run, keys.count), left, right, &mut result, PANEL, false);
                let y = &mut y[(panel * s.width + channels.start) * PANEL..][..d * PANEL];
                panel::scatter(&result, PANEL, d, run, y, column);
                log_sums[(panel * s.heads + head) * PANEL + column..][..run].copy_from_slice(&sums[..run]);
                token += run;
            }
        }
    }
}

/// Gradients of queries, keys and values, for every image and head channels by tokens.
///
/// With weights `A`, values `V` and `g` the gradient of the output: `dV = Aᵀ g`, `dA = g Vᵀ`,
/// `dS = A (dA - Σ A dA) / √(D/H)`, `dQ = dS K`, `dK = dSᵀ Q`.
struct HeadGradients {
    q: Buffer,
    k: Buffer,
    v: Buffer,
    queries: usize,
    query_stride: usize,
    key_stride: usize,
    injected: usize,
}

impl HeadGradients {
    /// `tokens`: whether more than the gradients of injected keys and values is wanted.
    fn new(
        s: &Setting,
        extra: Extra<'_>,
        reads: &Tokens,
        kept: &Kept,
        d_attended: &[f32],
        tokens: bool,
    ) -> Self {
        let (d, queries) = (s.head(), reads.count());
        let injected = extra.own.attended.len();
        // A vector added to the CLS token's key and value has the gradient of that column.
        let tokens = tokens || extra.own.cls.is_some();
        let query_stride = queries.next_multiple_of(GROUP) + GROUP;
        let key_stride = Keys::new(s, extra).stride;
        let many = s.images * s.heads;
        let mut q = s.pool.take(many * d * query_stride);
        let mut k = s.pool.take(many * d * key_stride);
        let mut v = s.pool.take(many * d * key_stride);
        let tasks: Vec<_> = q
            .chunks_exact_mut(d * query_stride)
            .zip(k.chunks_exact_mut(d * key_stride))
            .zip(v.chunks_exact_mut(d * key_stride))
            .collect();
        tasks.into_par_iter().enumerate().for_each(|(number, ((dq, dk), dv))| {
            let _span = tracing::trace_span!("attention").entered();
            let (image, head) = (number / s.heads, number % s.heads);
            let own = (image * queries, queries);
            let mut keys = Keys::new(s, extra);
            keys.read(s, &kept.kv, extra, image, head);
            let channels = head * d..(head + 1) * d;
            let mut q = s.pool.take(d * query_stride);
            panel::gather(&kept.q, s.width, channels.clone(), own, &mut q, query_stride);
            let mut g = s.pool.take(d * query_stride);
            panel::gather(d_attended, s.width, channels, own, &mut g, query_stride);
            let mut sums = s.pool.zeros(query_stride);
            panel::gather(&kept.log_sums, s.heads, head..head + 1, own, &mut sums, query_stride);

            // The scores are computed a second time, which does not count.
            count::add((if tokens { 4 } else { 1 }) * queries * keys.count * d);
            let mut weights = s.pool.take(keys.rows() * query_stride);
            let mut d_scores = s.pool.take(keys.rows() * query_stride);
            for start in (0..queries).step_by(PANEL) {
                let run = PANEL.min(queries - start);
                let size = (keys.rows(), run, d);
                for (data, right, to) in [(&keys.k, &q, &mut weights), (&keys.v, &g, &mut d_scores)] {
                    let left = Left { data, order: Order::Columns, stride: keys.stride };
                    let right = Right { data: &right[start..], stride: query_stride };
                    product(s.level, size, left, right, &mut to[start..], query_stride, false);
                }
            }
            let size = (keys.count, queries.next_multiple_of(GROUP));
            panel::softmax_again(&mut weights, query_stride, size, s.scale(), &sums);
            panel::softmax_backward(&weights, &mut d_scores, query_stride, size, s.scale());

            if tokens {
                for start in (0..queries).step_by(PANEL) {
                    let run = PANEL.min(queries - start);
                    let left = Left { data: &keys.k, order: Order::Rows, stride: keys.stride };
                    let right = Right { data: &d_scores[start..], stride: query_stride };
                    product(
                        s.level,
                        (d, run, keys.count),
                        left,
                        right,
                        &mut dq[start..],
                        query_stride,
                        false,
                    );
                }
            }
            // Keys beside one another, since now the sum runs over queries.
            let wanted = if tokens { keys.count } else { injected };
            let mut turned = s.pool.take(queries * key_stride);
            for (from, of, to) in [(&d_scores, &q, dk), (&weights, &g, dv)] {
                panel::transpose(from, (wanted, queries), query_stride, &mut turned, key_stride);
                for start in (0..wanted).step_by(PANEL) {
                    let run = PANEL.min(wanted - start);
                    let left = Left { data: of, order: Order::Rows, stride: query_stride };
                    let right = Right { data: &turned[start..], stride: key_stride };
                    product(s.level, (d, run, queries), left, right, &mut to[start..], key_stride, false);
                }
            }
        });
        Self { q, k, v, queries, query_stride, key_stride, injected }
    }

    /// The gradient of the injected rows, see [`Gradients::extra`].
    fn extra(&self, s: &Setting, own: &Rows) -> Vec<f32> {
        let (d, width) = (s.head(), s.width);
        let columns = self.injected + usize::from(own.cls.is_some());
        let mut gradient = vec![0.0; s.images * columns * 2 * width];
        for (row, gradient) in gradient.chunks_exact_mut(2 * width).enumerate() {
            // The CLS token is the first behind the injected rows.
            let (image, column) = (row / columns, row % columns);
            for (part, from) in [&self.k, &self.v].into_iter().enumerate() {
                for channel in 0..width {
                    let head = image * s.heads + channel / d;
                    gradient[part * width + channel] =
                        from[(head * d + channel % d) * self.key_stride + column];
                }
            }
        }
        gradient
    }

    /// Writes the gradient of the queries of a set's tokens into panels of `channels` rows, from row `row` on; the
    /// set is one of the tokens that were read.
    fn queries(
        &self,
        s: &Setting,
        of: &Tokens,
        share: (usize, usize),
        to: &mut [f32],
        channels: usize,
        row: usize,
    ) {
        debug_assert!(of.count() <= self.queries);
        self.write(s, &self.q, self.query_stride, 0, of, share, to, (channels, row));
    }

    /// Likewise of keys, then values, of a set of all tokens.
    fn keys(
        &self,
        s: &Setting,
        of: &Tokens,
        share: (usize, usize),
        to: &mut [f32],
        channels: usize,
        row: usize,
    ) {
        self.write(s, &self.k, self.key_stride, self.injected, of, share, to, (channels, row));
        self.write(s, &self.v, self.key_stride, self.injected, of, share, to, (channels, row + s.width));
    }

    #[allow(clippy::too_many_arguments)]
    fn write(
        &self,
        s: &Setting,
        from: &[f32],
        stride: usize,
        skip: usize,
        of: &Tokens,
        (first, count): (usize, usize),
        to: &mut [f32],
        (channels, row): (usize, usize),
    ) {
        let (d, per_image) = (s.head(), of.count());
        let mut done = 0;
        while done < count {
            let (image, index) = ((first + done) / per_image, (first + done) % per_image);
            let (panel, column) = (done / PANEL, done % PANEL);
            let run = match of {
                Tokens::All(_) => (PANEL - column).min(per_image - index).min(count - done),
                Tokens::At(_) => 1,
            };
            let start = image * s.heads * d * stride + skip + of.position(index);
            let to = &mut to[(panel * channels + row) * PANEL..];
            panel::scatter(&from[start..], stride, s.width, run, to, column);
            done += run;
        }
    }
}
