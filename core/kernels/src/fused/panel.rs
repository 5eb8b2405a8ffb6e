//! Panels: the memory layout of activations in the fast path, and all operations on them except products.
//!
//! A panel contains [`PANEL`] tokens: `channels` rows of that many floats, one float per token. Panels are contiguous
//! and contain the tokens of all images in order. Columns after the last token contain zeros or values computed from
//! zeros. A panel is the right operand of the next product without conversion, and sums over channels need no shuffles.
//!
//! Threads divide the panels into the parts of a [`Shares`]. Each part begins with its own panel.

use std::{
    collections::BTreeMap,
    ops::{Deref, DerefMut, Range},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use multiversion::multiversion;
use rayon::prelude::*;

use super::tile::{GROUP, LINE, PANEL};
use crate::slices::Real;

/// Tokens of every image that a set of panels contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tokens {
    /// All tokens; the value is their number.
    All(usize),
    /// Tokens at these positions.
    At(Vec<usize>),
}

impl Tokens {
    /// Returns the number of tokens of one image.
    pub fn count(&self) -> usize {
        match self {
            Self::All(count) => *count,
            Self::At(positions) => positions.len(),
        }
    }

    /// Returns the position in its image of token `index` of the set.
    pub fn position(&self, index: usize) -> usize {
        match self {
            Self::All(_) => index,
            Self::At(positions) => positions[index],
        }
    }
}

/// Pool of reusable memory, so that steps allocate no pages and memory does not grow. All networks share one pool,
/// because only one network computes at a time: the student reuses the memory of the teacher's activations.
#[derive(Debug, Default)]
pub struct Pool {
    free: Mutex<FreeBuffers>,
}

#[derive(Debug, Default)]
struct FreeBuffers {
    /// Free buffers by length, with the pass in which each was returned.
    by_length: BTreeMap<usize, Vec<(u64, Vec<f32>)>>,
    /// Number of the current pass.
    pass: u64,
}

/// Memory from a [`Pool`], returned on drop. Its initial contents are arbitrary.
#[derive(Debug)]
pub struct Buffer {
    /// At least `len` floats from `start` on. `start` is aligned to a cache line, so that vector loads do not span two.
    data: Vec<f32>,
    start: usize,
    len: usize,
    pool: Arc<Pool>,
}

/// Number of passes after which unused memory is freed. A step has at most four: two for queries, teacher, student.
const MAX_IDLE_PASSES: u64 = 4;

impl Pool {
    /// Returns the pool of the process.
    pub fn shared() -> Arc<Self> {
        static SHARED: OnceLock<Arc<Pool>> = OnceLock::new();
        SHARED.get_or_init(Arc::default).clone()
    }

    /// Returns a buffer of `len` floats with arbitrary contents.
    pub fn take(self: &Arc<Self>, len: usize) -> Buffer {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        // Choose the smallest buffer that is large enough, unless most of it would stay unused.
        let size = len + LINE;
        let found = free.by_length.range_mut(size..=size + size / 4).find_map(|(_, buffers)| buffers.pop());
        drop(free);
        let data = found.map_or_else(|| vec![0.0; size], |(_, data)| data);
        // `align_offset` may fail; then vector loads span two cache lines.
        let start = data.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
        Buffer { data, start, len, pool: self.clone() }
    }

    /// Returns a buffer of `len` zeros.
    pub fn zeros(self: &Arc<Self>, len: usize) -> Buffer {
        let mut buffer = self.take(len);
        buffer.fill(0.0);
        buffer
    }

    /// Starts a pass, and frees memory that recent passes have not used.
    pub fn begin_pass(&self) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.pass += 1;
        let pass = free.pass;
        free.by_length.retain(|_, buffers| {
            buffers.retain(|(used, _)| used + MAX_IDLE_PASSES >= pass);
            !buffers.is_empty()
        });
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let data = std::mem::take(&mut self.data);
        let mut free = self.pool.free.lock().unwrap_or_else(PoisonError::into_inner);
        let pass = free.pass;
        free.by_length.entry(data.len()).or_default().push((pass, data));
    }
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.data[self.start..][..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data[self.start..][..self.len]
    }
}

/// Returns the number of panels for `tokens` tokens.
pub fn panels(tokens: usize) -> usize {
    tokens.div_ceil(PANEL)
}

/// Returns the number of used columns of panel `panel` of the panels for `tokens` tokens.
pub fn columns(panel: usize, tokens: usize) -> usize {
    (tokens - panel * PANEL).min(PANEL)
}

/// Maximum number of panels in a part (measured): several, so that cached weights are reused, but few enough that the
/// intermediate values of a part stay in the cache.
const MAX_PANELS: usize = 9;

/// Division of tokens into parts for threads. The threads' numbers of tokens differ by at most one [`GROUP`], so that
/// threads finish together. Only the last panel of a thread may be partly filled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shares {
    parts: Vec<Part>,
}

/// Part of the tokens that one parallel task processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Index of the first token.
    pub first: usize,
    /// Number of tokens.
    pub count: usize,
    /// Index of the first panel.
    panel: usize,
}

impl Shares {
    /// Divides `tokens` tokens among `threads` threads.
    pub fn new(tokens: usize, threads: usize) -> Self {
        let groups = tokens.div_ceil(GROUP);
        let threads = threads.clamp(1, groups.max(1));
        let border = |thread: usize| (thread * groups / threads * GROUP).min(tokens);
        let mut parts = Vec::new();
        let mut panel = 0;
        for thread in 0..threads {
            let (first, end) = (border(thread), border(thread + 1));
            let whole = panels(end - first);
            let rounds = whole.div_ceil(MAX_PANELS).max(1);
            for round in 0..rounds {
                let from = first + round * whole / rounds * PANEL;
                let to = (first + (round + 1) * whole / rounds * PANEL).min(end);
                parts.push(Part { first: from, count: to - from, panel });
                panel += panels(to - from);
            }
        }
        Self { parts }
    }

    /// Returns the total number of panels.
    pub fn panels(&self) -> usize {
        self.parts.last().map_or(0, |part| part.panel + panels(part.count))
    }

    /// Returns panel and column of a token, and the number of tokens in the panel from this token on.
    pub fn place(&self, token: usize) -> (usize, usize, usize) {
        let part = &self.parts[self.parts.partition_point(|part| part.first <= token) - 1];
        let inside = token - part.first;
        let column = inside % PANEL;
        (part.panel + inside / PANEL, column, (PANEL - column).min(part.count - inside))
    }

    /// Runs `work` on every part in parallel, with the part's slice of each of `panels`. The number beside the panels
    /// is their number of rows.
    pub fn each<const N: usize>(
        &self,
        mut panels: [(&mut [f32], usize); N],
        work: impl Fn(&Part, [&mut [f32]; N]) + Sync,
    ) {
        let cut = |part: &Part| {
            panels.each_mut().map(|(rest, channels)| {
                let (piece, after) = std::mem::take(rest).split_at_mut(part.len(*channels));
                *rest = after;
                piece
            })
        };
        let pieces: Vec<_> = self.parts.iter().map(cut).collect();
        self.parts.par_iter().zip(pieces).for_each(|(part, pieces)| work(part, pieces));
    }
}

impl Part {
    fn len(&self, channels: usize) -> usize {
        panels(self.count) * channels * PANEL
    }

    /// Returns the layout of the part's tokens in its own panels.
    pub fn alone(&self) -> Shares {
        Shares { parts: vec![Self { first: 0, count: self.count, panel: 0 }] }
    }

    /// Returns this part's slice of panels of `channels` rows.
    pub fn of<'a>(&self, panels: &'a [f32], channels: usize) -> &'a [f32] {
        &panels[self.panel * channels * PANEL..][..self.len(channels)]
    }
}

/// Copies rows `rows` of `count` tokens, from token `first` on, out of panels of `channels` rows to `to`, where tokens
/// are contiguous and rows are `stride` apart.
pub fn gather(
    shares: &Shares,
    from: &[f32],
    channels: usize,
    rows: Range<usize>,
    (first, count): (usize, usize),
    to: &mut [f32],
    stride: usize,
) {
    let mut done = 0;
    while done < count {
        let (panel, column, room) = shares.place(first + done);
        let run = room.min(count - done);
        for (number, row) in rows.clone().enumerate() {
            let source = (panel * channels + row) * PANEL + column;
            to[number * stride + done..][..run].copy_from_slice(&from[source..source + run]);
        }
        done += run;
    }
}

/// Writes `columns` columns of `rows` rows, `stride` apart in `from`, into one panel from column `at`.
pub fn scatter(from: &[f32], stride: usize, rows: usize, columns: usize, to: &mut [f32], at: usize) {
    for row in 0..rows {
        to[row * PANEL + at..][..columns].copy_from_slice(&from[row * stride..][..columns]);
    }
}

/// Iterates over the `channels` values of one token.
pub fn column<'a>(
    shares: &Shares,
    panels: &'a [f32],
    channels: usize,
    token: usize,
) -> impl Iterator<Item = &'a f32> {
    let (panel, column, _) = shares.place(token);
    panels[panel * channels * PANEL..][..channels * PANEL][column..].iter().step_by(PANEL)
}

/// Iterates over mutable references to the `channels` values of one token.
pub fn column_mut<'a>(
    shares: &Shares,
    panels: &'a mut [f32],
    channels: usize,
    token: usize,
) -> impl Iterator<Item = &'a mut f32> {
    let (panel, column, _) = shares.place(token);
    panels[panel * channels * PANEL..][..channels * PANEL][column..].iter_mut().step_by(PANEL)
}

/// Writes tokens, rows of `width` floats each, into panels from token `first` on.
pub fn into_panels(shares: &Shares, rows: &[f32], width: usize, first: usize, panels: &mut [f32]) {
    for (index, row) in rows.chunks_exact(width).enumerate() {
        column_mut(shares, panels, width, first + index).zip(row).for_each(|(to, from)| *to = *from);
    }
}

/// Converts panels of `tokens` tokens to rows of `width` floats.
pub fn out_of_panels(shares: &Shares, panels: &[f32], width: usize, tokens: usize) -> Vec<f32> {
    let mut rows = Vec::with_capacity(tokens * width);
    (0..tokens).for_each(|token| rows.extend(column(shares, panels, width, token)));
    rows
}

/// Transposes a matrix of `rows` rows and `columns` columns. `stride` and `to_stride` are the distances between rows.
pub fn transpose(from: &[f32], [rows, columns]: [usize; 2], stride: usize, to: &mut [f32], to_stride: usize) {
    const BLOCK: usize = 16;
    for row in (0..rows).step_by(BLOCK) {
        for column in (0..columns).step_by(BLOCK) {
            for c in column..(column + BLOCK).min(columns) {
                let to = &mut to[c * to_stride + row..][..BLOCK.min(rows - row)];
                for (r, to) in to.iter_mut().enumerate() {
                    *to = from[(row + r) * stride + c];
                }
            }
        }
    }
}

type PanelRow = [f32; PANEL];

#[inline(always)]
fn panel_row(panel: &[f32], row: usize) -> &[f32] {
    &panel[row * PANEL..][..PANEL]
}

/// Computes `y = (x - mean) rstd γ + β` of each token. Writes mean and reciprocal standard deviation `rstd` to `stats`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn layer_norm(x: &[f32], gamma: &[f32], beta: &[f32], eps: f32, stats: &mut [f32], y: &mut [f32]) {
    let scale = 1.0 / gamma.len() as f32;
    let (mut mean, mut rstd): (PanelRow, PanelRow) = ([0.0; PANEL], [0.0; PANEL]);
    for row in 0..gamma.len() {
        let x = panel_row(x, row);
        for (sum, x) in mean.iter_mut().zip(x) {
            *sum += x;
        }
    }
    mean.iter_mut().for_each(|sum| *sum *= scale);
    for row in 0..gamma.len() {
        let x = panel_row(x, row);
        for i in 0..PANEL {
            rstd[i] += (x[i] - mean[i]) * (x[i] - mean[i]);
        }
    }
    rstd.iter_mut().for_each(|sum| *sum = 1.0 / (*sum * scale + eps).sqrt());
    for (row, (gamma, beta)) in gamma.iter().zip(beta).enumerate() {
        let (x, y) = (panel_row(x, row), &mut y[row * PANEL..][..PANEL]);
        for i in 0..PANEL {
            y[i] = (x[i] - mean[i]) * rstd[i] * gamma + beta;
        }
    }
    stats[..PANEL].copy_from_slice(&mean);
    stats[PANEL..2 * PANEL].copy_from_slice(&rstd);
}

/// Replaces the gradient of the norm's output in `gradient` by the gradient of its input,
/// `rstd (g - mean(g) - x̂ mean(g x̂))` with `g` the gradient times γ, plus `residual`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn layer_norm_backward(
    x: &[f32],
    stats: &[f32],
    gamma: &[f32],
    residual: Option<&[f32]>,
    gradient: &mut [f32],
) {
    let scale = 1.0 / gamma.len() as f32;
    let (mean, rstd) = (&stats[..PANEL], &stats[PANEL..2 * PANEL]);
    let (mut mean_g, mut mean_gx): (PanelRow, PanelRow) = ([0.0; PANEL], [0.0; PANEL]);
    for (row, gamma) in gamma.iter().enumerate() {
        let (x, g) = (panel_row(x, row), panel_row(gradient, row));
        for i in 0..PANEL {
            let g = g[i] * gamma;
            mean_g[i] += g;
            mean_gx[i] += g * (x[i] - mean[i]) * rstd[i];
        }
    }
    for i in 0..PANEL {
        mean_g[i] *= scale;
        mean_gx[i] *= scale;
    }
    for (row, gamma) in gamma.iter().enumerate() {
        let x = panel_row(x, row);
        let out = &mut gradient[row * PANEL..][..PANEL];
        for i in 0..PANEL {
            let normal = (x[i] - mean[i]) * rstd[i];
            out[i] = rstd[i] * (out[i] * gamma - mean_g[i] - normal * mean_gx[i]);
        }
        if let Some(residual) = residual {
            let residual = panel_row(residual, row);
            for i in 0..PANEL {
                out[i] += residual[i];
            }
        }
    }
}

/// Replaces `x` by the exact `gelu(x)`. Writes `gelu'(x)` to `slope`, if given.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn gelu(x: &mut [f32], slope: Option<&mut [f32]>) {
    match slope {
        None => {
            for x in x {
                *x *= f32::normal(*x).0;
            }
        }
        Some(slope) => {
            for (x, slope) in x.iter_mut().zip(slope) {
                let (cdf, density) = f32::normal(*x);
                *slope = cdf + *x * density;
                *x *= cdf;
            }
        }
    }
}

/// Computes `x *= y`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn multiply(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x *= y;
    }
}

/// Number of columns that [`softmax`] and [`softmax_backward`] process at once.
const LANES: usize = 16;

/// Computes the softmax over each column of `scores * scale`, with `keys` rows. Writes the logarithm of each column's
/// sum of exponentials to `log_sums`. `columns` is a multiple of 16.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn softmax(scores: &mut [f32], [keys, columns]: [usize; 2], scale: f32, log_sums: &mut [f32]) {
    for start in (0..columns).step_by(LANES) {
        let mut max = [f32::NEG_INFINITY; LANES];
        for key in 0..keys {
            let row = &scores[key * PANEL + start..][..LANES];
            for i in 0..LANES {
                max[i] = if row[i] > max[i] { row[i] } else { max[i] };
            }
        }
        let mut sum = [0f32; LANES];
        for key in 0..keys {
            let row = &mut scores[key * PANEL + start..][..LANES];
            for i in 0..LANES {
                row[i] = f32::exp_negative((row[i] - max[i]) * scale);
                sum[i] += row[i];
            }
        }
        let mut norm = [0f32; LANES];
        for i in 0..LANES {
            norm[i] = 1.0 / sum[i];
            log_sums[start + i] = max[i] * scale + sum[i].ln();
        }
        for key in 0..keys {
            let row = &mut scores[key * PANEL + start..][..LANES];
            for i in 0..LANES {
                row[i] *= norm[i];
            }
        }
    }
}

/// Replaces scores, in rows `stride` apart, by the weights, from the logarithms of the columns' sums of exponentials.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn recompute_softmax(scores: &mut [f32], stride: usize, columns: usize, scale: f32, log_sums: &[f32]) {
    for row in scores.chunks_exact_mut(stride) {
        for (score, log_sum) in row[..columns].iter_mut().zip(log_sums) {
            let x = *score * scale - log_sum;
            *score = f32::exp_negative(if x < 0.0 { x } else { 0.0 });
        }
    }
}

/// Replaces the gradient `dA` of the weights by that of the scores, `dS = A (dA - Σ A dA) scale`, column by column.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn softmax_backward(
    weights: &[f32],
    gradient: &mut [f32],
    stride: usize,
    [keys, columns]: [usize; 2],
    scale: f32,
) {
    for start in (0..columns).step_by(LANES) {
        let mut delta = [0f32; LANES];
        for key in 0..keys {
            let at = key * stride + start;
            let (w, g) = (&weights[at..][..LANES], &gradient[at..][..LANES]);
            for i in 0..LANES {
                delta[i] += w[i] * g[i];
            }
        }
        for key in 0..keys {
            let at = key * stride + start;
            let (w, g) = (&weights[at..][..LANES], &mut gradient[at..][..LANES]);
            for i in 0..LANES {
                g[i] = w[i] * (g[i] - delta[i]) * scale;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_to_cache_lines_and_reused() {
        let pool = Arc::<Pool>::default();
        for len in [1, 48, 1000, 100_000] {
            let first = pool.take(len);
            assert_eq!((first.as_ptr() as usize % 64, first.len()), (0, len));
            let place = first.as_ptr();
            drop(first);
            assert_eq!(pool.zeros(len).as_ptr(), place);
        }
    }
}
