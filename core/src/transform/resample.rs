//! Resizing as Pillow does it, to the last bit.

use std::ops::Range;

use image::{RgbImage, imageops};
use multiversion::multiversion;

use crate::transform::{CropBox, Interpolation};

impl Interpolation {
    /// Distance, in pixels, from which on the filter is 0, before it widens.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    /// The filter at distance `x` from its centre.
    pub(crate) fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Self::Bilinear if x < 1.0 => 1.0 - x,
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            _ => 0.0,
        }
    }
}

/// One axis of a resampling: `source` pixels become `resized` pixels, and of these the `length`
/// pixels from `first` on are computed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis {
    source: u32,
    resized: u64,
    first: u64,
    length: u32,
}

impl Axis {
    /// All of the pixels that `source` pixels become.
    pub(super) fn whole(source: u32, resized: u32) -> Self {
        Self { source, resized: resized.into(), first: 0, length: resized }
    }

    /// The middle `length` of the `resized` pixels, or all if they are fewer. A margin that cannot
    /// be halved is split as in torchvision's `CenterCrop`, which rounds halves to even.
    pub(super) fn center(source: u32, resized: u64, length: u32) -> Self {
        let kept = u32::try_from(resized).map_or(length, |resized| resized.min(length));
        let margin = resized - u64::from(kept);
        Self { source, resized, first: (margin as f64 / 2.0).round_ties_even() as u64, length: kept }
    }

    /// Whether output pixels are source pixels, so that there is nothing to compute.
    fn is_copy(&self) -> bool {
        u64::from(self.source) == self.resized
    }
}

/// Fractional bits of the weights: as many as leave a sum of 8-bit pixels, weighted by a filter
/// that overshoots, inside 32 bits. As in Pillow, whose rounding this must share.
const WEIGHT_BITS: u32 = 32 - 8 - 2;

/// Half of a grey level, where every weighted sum starts so that it is rounded, not cut off.
const HALF_LEVEL: i32 = 1 << (WEIGHT_BITS - 1);

/// The filter of one axis, cut to the source: for each output pixel, the source pixels it is made
/// of and their weights.
struct Taps {
    outputs: Vec<Tap>,
    /// The weights of all output pixels, times 2^`WEIGHT_BITS`.
    weights: Vec<i32>,
}

/// Where one output pixel finds its source pixels and their weights: ranges of one length.
struct Tap {
    source: Range<usize>,
    weights: Range<usize>,
}

impl Taps {
    fn new(axis: Axis, interpolation: Interpolation) -> Self {
        let scale = f64::from(axis.source) / axis.resized as f64;
        // Shrinking widens the filter to cover the source; enlarging must not narrow it.
        let widening = scale.max(1.0);
        let support = interpolation.support() * widening;

        let mut outputs = Vec::with_capacity(axis.length as usize);
        let mut weights = Vec::new();
        let mut exact = Vec::new();
        for output in axis.first..axis.first + u64::from(axis.length) {
            let center = (output as f64 + 0.5) * scale;
            // A conversion to unsigned integers takes what lies before the source to 0.
            let start = (center - support + 0.5) as u32;
            let end = ((center + support + 0.5) as u32).min(axis.source);
            exact.clear();
            exact.extend(
                (start..end)
                    .map(|pixel| interpolation.weight((f64::from(pixel) - center + 0.5) * (1.0 / widening))),
            );
            let sum: f64 = exact.iter().sum();
            let one = f64::from(1 << WEIGHT_BITS);
            let first_weight = weights.len();
            weights.extend(exact.iter().map(|weight| (weight / sum * one).round() as i32));
            outputs.push(Tap { source: start as usize..end as usize, weights: first_weight..weights.len() });
        }
        Self { outputs, weights }
    }

    /// For each output pixel, the range of its source pixels and their weights.
    fn iter(&self) -> impl Iterator<Item = (Range<usize>, &[i32])> {
        self.outputs.iter().map(|tap| (tap.source.clone(), &self.weights[tap.weights.clone()]))
    }

    /// The source pixels that any output pixel is made of.
    fn source(&self) -> Range<usize> {
        let start = self.outputs.first().map_or(0, |tap| tap.source.start);
        let end = self.outputs.last().map_or(0, |tap| tap.source.end);
        start..end
    }
}

/// Resizes `area` of `image` and cuts out of the result what `columns` and `rows` say. The filter reads all of `area`
/// and nothing else, as if `area` were the image. `area` must lie in the image and be the source of both axes.
///
/// As in Pillow, each row is resized first, to 8 bits, and then each column. The order shows where
/// the bicubic filter overshoots black or white, which the 8 bits cut off: by tens of grey levels.
pub(super) fn resample(
    image: &RgbImage,
    area: CropBox,
    columns: Axis,
    rows: Axis,
    interpolation: Interpolation,
) -> RgbImage {
    if columns.is_copy() && rows.is_copy() {
        // An axis that is copied is no longer than its source.
        let left = area.left + columns.first as u32;
        let top = area.top + rows.first as u32;
        return imageops::crop_imm(image, left, top, columns.length, rows.length).to_image();
    }
    if columns.length == 0 || rows.length == 0 {
        return RgbImage::new(columns.length, rows.length);
    }
    let column_taps = Taps::new(columns, interpolation);
    let row_taps = Taps::new(rows, interpolation);
    let source_rows = row_taps.source();
    let narrowed = resize_rows(image, area, source_rows.clone(), &column_taps);
    let mut output = RgbImage::new(columns.length, rows.length);
    resize_columns(&narrowed, source_rows.start, &row_taps, &mut output);
    output
}

/// Values that are summed together, a few vector registers full.
const WIDTH: usize = 64;
/// Rows that are resized together.
const ROWS: usize = WIDTH / 4;

/// One column of [`ROWS`] rows: red, green, blue and nothing of each, so that a vector holds a column.
type Column = [u8; WIDTH];

/// Rows of pixels, each filled up to a multiple of [`WIDTH`] values.
struct Rows {
    stride: usize,
    levels: Vec<u8>,
}

/// Weighted sums of levels as levels.
#[inline(always)]
fn to_levels(sums: &[i32; WIDTH]) -> [u8; WIDTH] {
    let mut levels = [0; WIDTH];
    for (level, sum) in levels.iter_mut().zip(sums) {
        *level = (sum >> WEIGHT_BITS).clamp(0, 255) as u8;
    }
    levels
}

/// Adds `weight` times each of the levels.
#[inline(always)]
fn add(sums: &mut [i32; WIDTH], levels: &[u8; WIDTH], weight: i32) {
    for (sum, level) in sums.iter_mut().zip(levels) {
        *sum += i32::from(*level) * weight;
    }
}

/// Resizes each of the rows `rows` of `area` along the row.
fn resize_rows(image: &RgbImage, area: CropBox, rows: Range<usize>, taps: &Taps) -> Rows {
    let width = taps.outputs.len();
    let stride = (3 * width).next_multiple_of(WIDTH);
    let mut output = Rows { stride, levels: vec![0; stride * rows.len()] };
    // Columns that no output pixel is made of, as beside a square from the centre, are not touched.
    let needed = taps.source();
    let columns = area.left as usize + needed.start..area.left as usize + needed.end;
    let (pixels, _) = image.as_chunks::<3>();
    let sources = pixels.chunks_exact(image.width() as usize).skip(area.top as usize + rows.start);
    let sources: Vec<&[[u8; 3]]> = sources.take(rows.len()).map(|row| &row[columns.clone()]).collect();
    let mut gathered: Vec<Column> = vec![[0; WIDTH]; needed.len()];
    let mut resized: Vec<Column> = vec![[0; WIDTH]; width];
    for (sources, targets) in sources.chunks(ROWS).zip(output.levels.chunks_mut(ROWS * stride)) {
        for (row, source) in sources.iter().enumerate() {
            for (column, [red, green, blue]) in gathered.iter_mut().zip(*source) {
                column.as_chunks_mut::<4>().0[row] = [*red, *green, *blue, 0];
            }
        }
        weigh_columns(&gathered, needed.start, taps, &mut resized);
        for (row, target) in targets.chunks_exact_mut(stride).enumerate() {
            for (pixel, column) in target.as_chunks_mut::<3>().0.iter_mut().zip(&resized) {
                let [red, green, blue, _] = column.as_chunks::<4>().0[row];
                *pixel = [red, green, blue];
            }
        }
    }
    output
}

/// The weighted sums of `columns`, whose first is column `first` of the taps' source.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx+avx2", "aarch64+neon"))]
fn weigh_columns(columns: &[Column], first: usize, taps: &Taps, resized: &mut [Column]) {
    for (target, (range, weights)) in resized.iter_mut().zip(taps.iter()) {
        let mut sums = [HALF_LEVEL; WIDTH];
        for (column, weight) in columns[range.start - first..range.end - first].iter().zip(weights) {
            add(&mut sums, column, *weight);
        }
        *target = to_levels(&sums);
    }
}

/// Resizes each column of `rows`, whose first row is row `first` of the taps' source.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx+avx2", "aarch64+neon"))]
fn resize_columns(rows: &Rows, first: usize, taps: &Taps, output: &mut RgbImage) {
    let blocks = rows.stride / WIDTH;
    let (levels, _) = rows.levels.as_chunks::<WIDTH>();
    let stride = 3 * output.width() as usize;
    for (target, (range, weights)) in output.chunks_exact_mut(stride).zip(taps.iter()) {
        let source = &levels[(range.start - first) * blocks..(range.end - first) * blocks];
        for (block, target) in target.chunks_mut(WIDTH).enumerate() {
            let mut sums = [HALF_LEVEL; WIDTH];
            let mut at = block;
            for weight in weights {
                add(&mut sums, &source[at], *weight);
                at += blocks;
            }
            let result = to_levels(&sums);
            match target.first_chunk_mut::<WIDTH>() {
                Some(target) => *target = result,
                None => target.copy_from_slice(&result[..target.len()]),
            }
        }
    }
}
