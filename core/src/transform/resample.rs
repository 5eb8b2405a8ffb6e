//! Resizing with results equal to Pillow's to the bit.

use std::ops::Range;

use image::{RgbImage, imageops};
use multiversion::multiversion;

use crate::transform::{CropBox, Interpolation};

impl Interpolation {
    /// Returns the distance in pixels from which the filter is 0, before widening.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    /// Returns the value of the filter at distance `x` from its centre.
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

/// One axis of resampling: `source` pixels are resized to `resized` pixels, of which `length` pixels from `first` on
/// are computed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis {
    source: u32,
    resized: u64,
    first: u64,
    length: u32,
}

impl Axis {
    /// Computes all `resized` pixels.
    pub(super) fn whole(source: u32, resized: u32) -> Self {
        Self { source, resized: resized.into(), first: 0, length: resized }
    }

    /// Computes the middle `length` of the `resized` pixels, or all if there are fewer. An odd margin is split as in
    /// torchvision's `CenterCrop`, which rounds halves to even.
    pub(super) fn center(source: u32, resized: u64, length: u32) -> Self {
        let kept = u32::try_from(resized).map_or(length, |resized| resized.min(length));
        let margin = resized - u64::from(kept);
        Self { source, resized, first: (margin as f64 / 2.0).round_ties_even() as u64, length: kept }
    }

    /// Returns whether output pixels are copies of source pixels.
    fn is_copy(&self) -> bool {
        u64::from(self.source) == self.resized
    }
}

/// Number of fractional bits of the weights: the largest for which a weighted sum of 8-bit pixels fits into 32 bits,
/// also if the filter overshoots. Pillow has the same number, on which the rounding depends.
const WEIGHT_BITS: u32 = 32 - 8 - 2;

/// Half a grey level, the initial value of every weighted sum, so that it is rounded and not truncated.
const HALF_LEVEL: i32 = 1 << (WEIGHT_BITS - 1);

/// Filter of one axis, clipped to the source: for each output pixel, its source pixels and their weights.
struct Taps {
    outputs: Vec<Tap>,
    /// Weights of all output pixels, times 2^`WEIGHT_BITS`.
    weights: Vec<i32>,
}

/// Source pixels of one output pixel, and the range of their weights. Both ranges have the same length.
struct Tap {
    source: Range<usize>,
    weights: Range<usize>,
}

impl Taps {
    fn new(axis: Axis, interpolation: Interpolation) -> Self {
        let scale = f64::from(axis.source) / axis.resized as f64;
        // When the image shrinks, the filter widens to cover the source. When it grows, the filter must not narrow.
        let widening = scale.max(1.0);
        let support = interpolation.support() * widening;

        let mut outputs = Vec::with_capacity(axis.length as usize);
        let mut weights = Vec::new();
        let mut exact = Vec::new();
        for output in axis.first..axis.first + u64::from(axis.length) {
            let center = (output as f64 + 0.5) * scale;
            // The conversion to an unsigned integer clamps negative positions to 0.
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

    /// Returns, for each output pixel, the range of its source pixels and their weights.
    fn iter(&self) -> impl Iterator<Item = (Range<usize>, &[i32])> {
        self.outputs.iter().map(|tap| (tap.source.clone(), &self.weights[tap.weights.clone()]))
    }

    /// Returns the range of all source pixels that are used.
    fn source(&self) -> Range<usize> {
        let start = self.outputs.first().map_or(0, |tap| tap.source.start);
        let end = self.outputs.last().map_or(0, |tap| tap.source.end);
        start..end
    }
}

/// Resizes `area` of `image` and computes the part of the result that `columns` and `rows` select. The filter reads
/// only `area`, as if it were the whole image. `area` must be inside the image and the source of both axes.
///
/// As in Pillow, each row is resized first, to 8 bits, and then each column. The order matters where the bicubic filter
/// overshoots black or white, which 8 bits clip: it changes results by tens of grey levels.
pub(super) fn resample(
    image: &RgbImage,
    area: CropBox,
    columns: Axis,
    rows: Axis,
    interpolation: Interpolation,
) -> RgbImage {
    if columns.is_copy() && rows.is_copy() {
        // The output of a copied axis is at most as long as its source.
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
    let resized_rows = resize_rows(image, area, source_rows.clone(), &column_taps);
    let mut output = RgbImage::new(columns.length, rows.length);
    resize_columns(&resized_rows, source_rows.start, &row_taps, &mut output);
    output
}

/// Number of values that are summed together: a few vector registers.
const WIDTH: usize = 64;
/// Number of rows that are resized together.
const ROWS: usize = WIDTH / 4;

/// One column of [`ROWS`] rows: red, green, blue and a padding byte of each, so that a vector contains whole pixels.
type Column = [u8; WIDTH];

/// Rows of pixels, each padded to a multiple of [`WIDTH`] values.
struct Rows {
    stride: usize,
    levels: Vec<u8>,
}

/// Converts weighted sums to grey levels.
#[inline(always)]
fn to_levels(sums: &[i32; WIDTH]) -> [u8; WIDTH] {
    let mut levels = [0; WIDTH];
    for (level, sum) in levels.iter_mut().zip(sums) {
        *level = (sum >> WEIGHT_BITS).clamp(0, 255) as u8;
    }
    levels
}

/// Adds `weight` times `levels` to `sums`.
#[inline(always)]
fn add(sums: &mut [i32; WIDTH], levels: &[u8; WIDTH], weight: i32) {
    for (sum, level) in sums.iter_mut().zip(levels) {
        *sum += i32::from(*level) * weight;
    }
}

/// Resizes the rows `rows` of `area` horizontally.
fn resize_rows(image: &RgbImage, area: CropBox, rows: Range<usize>, taps: &Taps) -> Rows {
    let width = taps.outputs.len();
    let stride = (3 * width).next_multiple_of(WIDTH);
    let mut output = Rows { stride, levels: vec![0; stride * rows.len()] };
    // Unused columns, such as those beside a centre crop, are not read.
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

/// Computes the weighted sums of `columns`, which begin with column `first` of the source.
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

/// Resizes `rows` vertically. They begin with row `first` of the source.
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
