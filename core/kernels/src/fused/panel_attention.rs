//! Attention of one block, forward and backward: image by image and head by head, on panels.

use rayon::prelude::*;

use super::{
    call::{Call, Kept, RunContext},
    count,
    panel::{self, Buffer, Part, Shares, Tokens},
    tile::{GROUP, Left, Order, PANEL, Right, STRIP, product, wide_product},
};
use crate::blocks::BlockRows;

/// Keys and values of one image and head, matrices of channels by keys. Injected keys precede those of the tokens.
struct Keys {
    k: Buffer,
    v: Buffer,
    /// Number of keys.
    count: usize,
    /// Distance between rows in floats.
    stride: usize,
}

impl Keys {
    fn new(Call { s, share, .. }: Call<'_>) -> Self {
        let count = share.attended.len() + s.tokens;
        let stride = count.next_multiple_of(GROUP) + GROUP;
        let take = || s.pool.take(s.head() * stride);
        Self { k: take(), v: take(), count, stride }
    }

    /// Reads keys and values of an image and head, and adds the injected CLS row to the CLS token's.
    fn read(&mut self, call: Call<'_>, (kv, shares): (&[f32], &Shares), image: usize, head: usize) {
        let Call { s, share, .. } = call;
        let (d, width, injected) = (s.head(), s.width, share.attended.len());
        for (part, to) in [&mut self.k, &mut self.v].into_iter().enumerate() {
            let at = part * width + head * d;
            let row = |row: usize| &call.injected[(image * call.rows + row) * 2 * width + at..][..d];
            for (column, index) in share.attended.clone().enumerate() {
                for (channel, value) in row(index).iter().enumerate() {
                    to[channel * self.stride + column] = *value;
                }
            }
            let tokens = (image * s.tokens, s.tokens);
            panel::gather(shares, kv, 2 * width, at..at + d, tokens, &mut to[injected..], self.stride);
            if let Some(index) = share.cls {
                for (channel, value) in row(index).iter().enumerate() {
                    to[channel * self.stride + injected] += *value;
                }
            }
        }
    }

    /// Returns the number of rows of the scores, a multiple of [`STRIP`].
    fn rows(&self) -> usize {
        self.count.next_multiple_of(STRIP)
    }
}

/// Computes attention for one `part` of the tokens in `call.reads`. `q` contains the queries of the part in panels, and
/// `kv` all keys and values. Writes the logarithm of each sum of exponentials to `log_sums`, one row per head.
pub fn attend(
    call: Call<'_>,
    q: &[f32],
    kv: (&[f32], &Shares),
    part: &Part,
    y: &mut [f32],
    log_sums: &mut [f32],
) {
    let Call { s, reads, .. } = call;
    let (d, first, end, per_image) = (s.head(), part.first, part.first + part.count, reads.count());
    let alone = part.alone();
    let mut keys = Keys::new(call);
    let mut scores = s.pool.take(keys.rows() * PANEL);
    let (mut queries, mut result) = (s.pool.take(d * PANEL), s.pool.take(d * PANEL));
    let mut sums = [0.0; PANEL];
    for image in first / per_image..=(end - 1) / per_image {
        let own = (image * per_image).max(first)..((image + 1) * per_image).min(end);
        for head in 0..s.heads {
            keys.read(call, kv, image, head);
            count::add(2 * own.len() * keys.count * d);
            let mut token = own.start;
            while token < own.end {
                let (panel, column) = ((token - first) / PANEL, (token - first) % PANEL);
                let run = (PANEL - column).min(own.end - token);
                let (channels, tokens) = (head * d..(head + 1) * d, (token - first, run));
                panel::gather(&alone, q, s.width, channels.clone(), tokens, &mut queries, PANEL);
                let left = Left { data: &keys.k, order: Order::Columns, stride: keys.stride };
                let right = Right { data: &queries, stride: PANEL };
                product(s.level, (keys.rows(), run, d), left, right, &mut scores, PANEL, false);
                let wide = run.next_multiple_of(GROUP);
                panel::softmax(&mut scores, [keys.count, wide], s.scale(), &mut sums);
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

/// Gradients of queries, keys and values: for every image and head, matrices of channels by tokens.
///
/// With weights `A`, values `V` and `g` the gradient of the output: `dV = Aᵀ g`, `dA = g Vᵀ`,
/// `dS = A (dA - Σ A dA) / √(D/H)`, `dQ = dS K`, `dK = dSᵀ Q`.
pub struct HeadGradients {
    q: Buffer,
    k: Buffer,
    v: Buffer,
    query_stride: usize,
    key_stride: usize,
    injected: usize,
}

impl HeadGradients {
    /// Computes the gradients, or, if `tokens` is false, only those of injected keys and values.
    pub fn new(call: Call<'_>, kept: &Kept, d_attended: &[f32], tokens: bool) -> Self {
        let Call { s, share, reads, .. } = call;
        let (d, queries) = (s.head(), reads.count());
        let (all, read) = (s.shares(&Tokens::All(s.tokens)), s.shares(reads));
        let injected = share.attended.len();
        // The row added to the CLS token's key and value has the gradient of this token's key and value.
        let tokens = tokens || share.cls.is_some();
        let query_stride = queries.next_multiple_of(GROUP) + GROUP;
        let key_stride = Keys::new(call).stride;
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
            let mut keys = Keys::new(call);
            keys.read(call, (&kept.kv, &all), image, head);
            let channels = head * d..(head + 1) * d;
            let mut q = s.pool.take(d * query_stride);
            panel::gather(&read, &kept.q, s.width, channels.clone(), own, &mut q, query_stride);
            let mut g = s.pool.take(d * query_stride);
            panel::gather(&read, d_attended, s.width, channels, own, &mut g, query_stride);
            let mut sums = s.pool.zeros(query_stride);
            panel::gather(&read, &kept.log_sums, s.heads, head..head + 1, own, &mut sums, query_stride);

            // The recomputation of scores is not counted as multiply-adds.
            count::add((if tokens { 4 } else { 1 }) * queries * keys.count * d);
            let mut weights = s.pool.take(keys.rows() * query_stride);
            let mut d_scores = s.pool.take(keys.rows() * query_stride);
            for (data, right, to) in [(&keys.k, &q, &mut weights), (&keys.v, &g, &mut d_scores)] {
                let left = Left { data, order: Order::Columns, stride: keys.stride };
                let right = Right { data: right, stride: query_stride };
                wide_product(s.level, (keys.rows(), queries, d), left, right, to, query_stride);
            }
            let size = [keys.count, queries.next_multiple_of(GROUP)];
            let scores = &mut weights[..keys.count * query_stride];
            panel::recompute_softmax(scores, query_stride, size[1], s.scale(), &sums);
            panel::softmax_backward(&weights, &mut d_scores, query_stride, size, s.scale());

            if tokens {
                let left = Left { data: &keys.k, order: Order::Rows, stride: keys.stride };
                let right = Right { data: &d_scores, stride: query_stride };
                wide_product(s.level, (d, queries, keys.count), left, right, dq, query_stride);
            }
            // Transpose the weights, because the sums now run over queries.
            let wanted = if tokens { keys.count } else { injected };
            let mut transposed = s.pool.take(queries * key_stride);
            for (from, of, to) in [(&d_scores, &q, dk), (&weights, &g, dv)] {
                panel::transpose(from, [wanted, queries], query_stride, &mut transposed, key_stride);
                let left = Left { data: of, order: Order::Rows, stride: query_stride };
                let right = Right { data: &transposed, stride: key_stride };
                wide_product(s.level, (d, wanted, queries), left, right, to, key_stride);
            }
        });
        Self { q, k, v, query_stride, key_stride, injected }
    }

    /// Returns the gradients of the injected rows, `2D` elements each: for each image, those of the attended rows, then
    /// that of the row added to CLS.
    pub fn extra(&self, s: &RunContext, share: &BlockRows) -> Vec<f32> {
        let (d, width) = (s.head(), s.width);
        let columns = self.injected + usize::from(share.cls.is_some());
        let mut gradient = vec![0.0; s.images * columns * 2 * width];
        for (row, gradient) in gradient.chunks_exact_mut(2 * width).enumerate() {
            // The CLS token is the first after the injected rows.
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

    /// Writes the gradients of the queries of the tokens `of`, a part of `call.reads`, into panels. `at` contains the
    /// number of rows of a panel and the first row of the queries.
    pub fn queries(&self, s: &RunContext, of: &Tokens, part: &Part, to: &mut [f32], at: (usize, usize)) {
        write(s, (&self.q, self.query_stride), of, part, to, at);
    }

    /// Writes the gradients of keys and values of the tokens `of` into panels. `at` contains the number of rows of a
    /// panel and the first row of the keys.
    pub fn keys(&self, s: &RunContext, of: &Tokens, part: &Part, to: &mut [f32], at: (usize, usize)) {
        for (from, row) in [(&self.k, at.1), (&self.v, at.1 + s.width)] {
            write(s, (&from[self.injected..], self.key_stride), of, part, to, (at.0, row));
        }
    }
}

/// Copies the columns of one part of the tokens `of` from matrices of channels by tokens into panels.
fn write(
    s: &RunContext,
    (from, stride): (&[f32], usize),
    of: &Tokens,
    part: &Part,
    to: &mut [f32],
    (channels, row): (usize, usize),
) {
    let (d, per_image) = (s.head(), of.count());
    let mut done = 0;
    while done < part.count {
        let (image, index) = ((part.first + done) / per_image, (part.first + done) % per_image);
        let (panel, column) = (done / PANEL, done % PANEL);
        let run = match of {
            Tokens::All(_) => (PANEL - column).min(per_image - index).min(part.count - done),
            Tokens::At(_) => 1,
        };
        let start = image * s.heads * d * stride + of.position(index);
        let to = &mut to[(panel * channels + row) * PANEL..];
        panel::scatter(&from[start..], stride, s.width, run, to, column);
        done += run;
    }
}
