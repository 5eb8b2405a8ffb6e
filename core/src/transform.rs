//! Image decoding and the transforms between a decoded image and the network.
//!
//! Every transform gives exactly what torchvision gives on a PIL image, so that accuracies can be
//! compared with results published for PyTorch, and gives the same on every machine. As in PIL,
//! pixels stay 8-bit integers throughout; [`write_pixels`] is the step to floats.
//!
//! The reference is Pillow up to 12.1, which resizes the rows of every image before its columns.
//! Pillow 12.2 and 13.0 swap the two for some tall images, and there give other results where a
//! bicubic filter overshoots black or white.

use std::ops::Range;

use image::{DynamicImage, ImageBuffer, Pixel, RgbImage, imageops};
use rand::{Rng, RngExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Largest accepted `image_size` and `resize`, in pixels: far above any network's input, and low
/// enough that one image fits in memory.
pub const MAX_SIDE: usize = 16_384;

/// Draws after which torchvision's `RandomResizedCrop` gives up on a random box.
const CROP_TRIES: usize = 10;

/// How an image becomes the square that the network sees, in training and in testing.
///
/// Each step does what the torchvision transform of the same name does on a PIL image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TransformConfig {
    /// Side, in pixels, of the square that the network sees.
    pub image_size: usize,
    /// What happens to a training image before the flip.
    pub train: TrainTransform,
    /// Smallest and largest area of a random crop, as fractions of the image's area. Used by
    /// `train = "random_resized_crop"`.
    pub scale: [f64; 2],
    /// Smallest and largest aspect ratio (width / height) of a random crop. Used by
    /// `train = "random_resized_crop"`.
    pub ratio: [f64; 2],
    /// Whether a training image is mirrored left to right with probability 1/2.
    pub flip: bool,
    /// What happens to a test image.
    pub test: TestTransform,
    /// Length, in pixels, that the shorter side is resized to before the centre crop, at least
    /// `image_size`. By default `image_size` x 256 / 224, rounded. Used by `test = "resize_crop"`.
    pub resize: Option<usize>,
    /// Filter of every resize. Both are antialiased: they widen when the image shrinks.
    pub interpolation: Interpolation,
}

/// What happens to a training image before the flip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TrainTransform {
    /// A box of random area, aspect ratio and place is cut out and resized to the square.
    #[default]
    RandomResizedCrop,
    /// The same as for a test image.
    Test,
}

/// What happens to a test image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TestTransform {
    /// Both sides are resized straight to `image_size`, whatever the aspect ratio (as published
    /// for CIFAR).
    Resize,
    /// The shorter side is resized to `resize`, keeping the aspect ratio, and the square is cut
    /// out of the centre.
    #[default]
    ResizeCrop,
}

/// Filter of a resize, antialiased as in Pillow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Interpolation {
    /// Triangle filter.
    #[default]
    Bilinear,
    /// Cubic filter with a = -0.5 (Catmull-Rom).
    Bicubic,
}

impl Interpolation {
    /// Distance, in pixels, from which on the filter is 0, before it widens.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    /// The filter at distance `x` from its centre.
    fn weight(self, x: f64) -> f64 {
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

impl Default for TransformConfig {
    fn default() -> Self {
        Self {
            image_size: 224,
            train: TrainTransform::default(),
            scale: [0.08, 1.0],
            ratio: [3.0 / 4.0, 4.0 / 3.0],
            flip: true,
            test: TestTransform::default(),
            resize: None,
            interpolation: Interpolation::default(),
        }
    }
}

impl TransformConfig {
    /// Checks every value.
    ///
    /// # Errors
    ///
    /// A sentence that names the first key whose value cannot be used, the value, and what was
    /// expected.
    pub fn validate(&self) -> Result<(), String> {
        let Self { image_size, resize, .. } = *self;
        if !(1..=MAX_SIDE).contains(&image_size) {
            return Err(format!("`image_size` is {image_size}, expected 1 to {MAX_SIDE} pixels"));
        }
        if !(is_ascending_positive(self.scale) && self.scale[1] <= 1.0) {
            return Err(format!(
                "`scale` is {:?}, expected the smallest and the largest area of a crop as \
                 fractions of the image's: 0 < smallest <= largest <= 1",
                self.scale
            ));
        }
        if !is_ascending_positive(self.ratio) {
            return Err(format!(
                "`ratio` is {:?}, expected the smallest and the largest width / height of a \
                 crop: 0 < smallest <= largest, both finite",
                self.ratio
            ));
        }
        if self.test == TestTransform::ResizeCrop {
            let side = self.resize_side();
            if !(image_size..=MAX_SIDE).contains(&side) {
                return Err(match resize {
                    Some(_) => format!(
                        "`resize` is {side}, expected {image_size} (`image_size`) to {MAX_SIDE} \
                         pixels, since a square of `image_size` is cut out of the resized image"
                    ),
                    None => format!(
                        "`image_size` is {image_size}, which makes `resize` {side} by default, \
                         expected at most {MAX_SIDE} pixels; set `resize`"
                    ),
                });
            }
        }
        Ok(())
    }

    /// Transforms a training image. Returns a square of `image_size`.
    ///
    /// The configuration must be [valid](Self::validate); the same image and state of `rng` give
    /// the same result.
    pub fn train<R: Rng + ?Sized>(&self, image: &RgbImage, rng: &mut R) -> RgbImage {
        let mut square = match self.train {
            TrainTransform::RandomResizedCrop => {
                let (width, height) = image.dimensions();
                let area = random_resized_crop_box(width, height, self.scale, self.ratio, rng);
                resized_crop(image, area, self.side(), self.interpolation)
            }
            TrainTransform::Test => self.test(image),
        };
        if self.flip && rng.random() {
            imageops::flip_horizontal_in_place(&mut square);
        }
        square
    }

    /// Transforms a test image. Returns a square of `image_size`.
    ///
    /// The configuration must be [valid](Self::validate).
    pub fn test(&self, image: &RgbImage) -> RgbImage {
        match self.test {
            TestTransform::Resize => {
                let whole = CropBox::whole(image);
                resized_crop(image, whole, self.side(), self.interpolation)
            }
            TestTransform::ResizeCrop => {
                resize_center_crop(image, as_side(self.resize_side()), self.side(), self.interpolation)
            }
        }
    }

    fn side(&self) -> u32 {
        as_side(self.image_size)
    }

    /// `resize`, or its default: `image_size` * 256 / 224 = `image_size` * 8 / 7, rounded.
    fn resize_side(&self) -> usize {
        self.resize.unwrap_or_else(|| self.image_size.saturating_mul(16).saturating_add(7) / 14)
    }
}

/// Whether `0 < low <= high < infinity`; false if either is not a number.
fn is_ascending_positive([low, high]: [f64; 2]) -> bool {
    0.0 < low && low <= high && high.is_finite()
}

/// A configured side as pixels. Only sides that [`TransformConfig::validate`] rejects change.
fn as_side(side: usize) -> u32 {
    side.clamp(1, MAX_SIDE) as u32
}

/// A box of whole pixels inside an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CropBox {
    /// Columns to the left of the box.
    pub left: u32,
    /// Rows above the box.
    pub top: u32,
    /// Columns in the box.
    pub width: u32,
    /// Rows in the box.
    pub height: u32,
}

impl CropBox {
    /// The box that holds all of `image`.
    pub fn whole(image: &RgbImage) -> Self {
        Self { left: 0, top: 0, width: image.width(), height: image.height() }
    }

    /// The part of the box inside an image of `width` x `height` pixels, or the image's nearest
    /// pixels where there is none: at least one pixel.
    fn clipped(self, width: u32, height: u32) -> Self {
        let left = self.left.min(width - 1);
        let top = self.top.min(height - 1);
        Self {
            left,
            top,
            width: self.width.clamp(1, width - left),
            height: self.height.clamp(1, height - top),
        }
    }
}

/// Draws the box of torchvision's `RandomResizedCrop` (`get_params`) for an image of
/// `width` x `height` pixels, neither 0.
///
/// `scale` bounds the area of the box as a fraction of the image's, `ratio` its width / height.
/// The area is uniform in `scale` and the logarithm of the aspect ratio is uniform, both before
/// the sides are rounded to pixels. If ten such boxes do not fit in the image, the box is the
/// largest one in the centre whose aspect ratio is within `ratio`, whatever `scale` says.
pub fn random_resized_crop_box<R: Rng + ?Sized>(
    width: u32,
    height: u32,
    scale: [f64; 2],
    ratio: [f64; 2],
    rng: &mut R,
) -> CropBox {
    let area = f64::from(width) * f64::from(height);
    let log_ratio = ratio.map(f64::ln);
    for _ in 0..CROP_TRIES {
        let target_area = area * uniform(scale, rng);
        let aspect_ratio = uniform(log_ratio, rng).exp();
        let w = round_to_pixels((target_area * aspect_ratio).sqrt());
        let h = round_to_pixels((target_area / aspect_ratio).sqrt());
        if (1..=width).contains(&w) && (1..=height).contains(&h) {
            let top = rng.random_range(0..=height - h);
            let left = rng.random_range(0..=width - w);
            return CropBox { left, top, width: w, height: h };
        }
    }

    let [min_ratio, max_ratio] = ratio;
    let image_ratio = f64::from(width) / f64::from(height);
    let (w, h) = if image_ratio < min_ratio {
        (width, round_to_pixels(f64::from(width) / min_ratio))
    } else if image_ratio > max_ratio {
        (round_to_pixels(f64::from(height) * max_ratio), height)
    } else {
        (width, height)
    };
    // A side rounds to 0 if the image is narrow and `ratio` extreme; torchvision then fails.
    let (w, h) = (w.clamp(1, width), h.clamp(1, height));
    CropBox { left: (width - w) / 2, top: (height - h) / 2, width: w, height: h }
}

/// A uniform draw from `low` to `high`.
fn uniform<R: Rng + ?Sized>([low, high]: [f64; 2], rng: &mut R) -> f64 {
    low + (high - low) * rng.random::<f64>()
}

/// Rounds as Python's `round`: halves to the even neighbour. Saturates; not a number gives 0.
fn round_to_pixels(length: f64) -> u32 {
    length.round_ties_even() as u32
}

/// Cuts `area` out of `image` and resizes it to a square of `side` pixels, as torchvision's
/// `resized_crop`: pixels outside `area` have no influence. A box that reaches beyond the image
/// is cut to it.
pub fn resized_crop(image: &RgbImage, area: CropBox, side: u32, interpolation: Interpolation) -> RgbImage {
    let area = area.clipped(image.width(), image.height());
    resample(image, area, Axis::whole(area.width, side), Axis::whole(area.height, side), interpolation)
}

/// Resizes `image` so that its shorter side is `resize` pixels and cuts a square of `side` pixels
/// out of the centre, as torchvision's `Resize(resize)` and `CenterCrop(side)`. A resized image
/// smaller than the square is centred on black.
///
/// The resized image, which is huge if `image` is long and thin, is not made: only the square is.
pub fn resize_center_crop(
    image: &RgbImage,
    resize: u32,
    side: u32,
    interpolation: Interpolation,
) -> RgbImage {
    let (width, height) = image.dimensions();
    let shorter = width.min(height);
    let resized = |length: u32| u64::from(resize) * u64::from(length) / u64::from(shorter);
    let cropped = resample(
        image,
        CropBox::whole(image),
        Axis::center(width, resized(width), side),
        Axis::center(height, resized(height), side),
        interpolation,
    );
    if cropped.dimensions() == (side, side) {
        return cropped;
    }
    let mut square = RgbImage::new(side, side);
    let left = (side - cropped.width()) / 2;
    let top = (side - cropped.height()) / 2;
    imageops::replace(&mut square, &cropped, left.into(), top.into());
    square
}

/// One axis of a resampling: `source` pixels become `resized` pixels, and of these the `length`
/// pixels from `first` on are computed.
#[derive(Debug, Clone, Copy)]
struct Axis {
    source: u32,
    resized: u64,
    first: u64,
    length: u32,
}

impl Axis {
    /// All of the pixels that `source` pixels become.
    fn whole(source: u32, resized: u32) -> Self {
        Self { source, resized: resized.into(), first: 0, length: resized }
    }

    /// The middle `length` of the `resized` pixels, or all if they are fewer. A margin that cannot
    /// be halved is split as in torchvision's `CenterCrop`, which rounds halves to even.
    fn center(source: u32, resized: u64, length: u32) -> Self {
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

/// A weighted sum of pixels as a pixel.
fn to_level(sum: i32) -> u8 {
    (sum >> WEIGHT_BITS).clamp(0, 255) as u8
}

/// Resizes `area` of `image` and cuts out of the result what `columns` and `rows` say. The filter
/// reads all of `area` and nothing else, as if `area` were the image. `area` must lie in the image
/// and be the source of both axes.
///
/// As in Pillow, each row is resized first, to 8 bits, and then each column. The order shows where
/// the bicubic filter overshoots black or white, which the 8 bits cut off: by tens of grey levels.
fn resample(
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
    resize_columns(&narrowed, source_rows.start, &row_taps)
}

/// Resizes each of the rows `rows` of `area` along the row.
fn resize_rows(image: &RgbImage, area: CropBox, rows: Range<usize>, taps: &Taps) -> RgbImage {
    let mut output = RgbImage::new(taps.outputs.len() as u32, rows.len() as u32);
    let columns = area.left as usize..(area.left + area.width) as usize;
    let (pixels, _) = image.as_chunks::<3>();
    let sources = pixels.chunks_exact(image.width() as usize).skip(area.top as usize + rows.start);
    let (targets, _) = output.as_chunks_mut::<3>();
    for (source, target) in sources.zip(targets.chunks_exact_mut(taps.outputs.len())) {
        let source = &source[columns.clone()];
        for (target, (range, weights)) in target.iter_mut().zip(taps.iter()) {
            let mut sums = [HALF_LEVEL; 3];
            for (pixel, weight) in source[range].iter().zip(weights) {
                for (sum, level) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(*level) * weight;
                }
            }
            *target = sums.map(to_level);
        }
    }
    output
}

/// Resizes each column of `image`, whose first row is row `first_row` of the taps' source.
fn resize_columns(image: &RgbImage, first_row: usize, taps: &Taps) -> RgbImage {
    let mut output = RgbImage::new(image.width(), taps.outputs.len() as u32);
    let stride = 3 * image.width() as usize;
    let mut sums = vec![HALF_LEVEL; stride];
    for (target, (range, weights)) in output.chunks_exact_mut(stride).zip(taps.iter()) {
        sums.fill(HALF_LEVEL);
        let sources = image.chunks_exact(stride).skip(range.start - first_row);
        for (source, weight) in sources.zip(weights) {
            for (sum, level) in sums.iter_mut().zip(source) {
                *sum += i32::from(*level) * weight;
            }
        }
        for (level, sum) in target.iter_mut().zip(&sums) {
            *level = to_level(*sum);
        }
    }
    output
}

/// Decodes an image file of any supported format, found by its first bytes, to 8-bit RGB.
///
/// The result is that of `Image.open(..).convert("RGB")` in PIL: grey is replicated, palettes are
/// looked up, alpha is dropped without blending, the orientation in EXIF data is not applied, and
/// of an animation the first frame is taken. JPEG files decode to within a few grey levels of
/// PIL's result (at most 5, on average less than half of one). 16 bits per channel are cut to the
/// upper 8, as PIL does for colour; for 16-bit grey, where PIL turns every value above 255 to
/// white, this is a deliberate difference.
///
/// # Errors
///
/// A description of what is wrong with the file.
pub fn decode(bytes: &[u8]) -> Result<RgbImage, String> {
    let image = image::load_from_memory(bytes).map_err(|error| error.to_string())?;
    if image.width() == 0 || image.height() == 0 {
        return Err("the image has no pixels".to_string());
    }
    Ok(match image {
        DynamicImage::ImageLuma16(image) => upper_bytes(&image),
        DynamicImage::ImageLumaA16(image) => upper_bytes(&image),
        DynamicImage::ImageRgb16(image) => upper_bytes(&image),
        DynamicImage::ImageRgba16(image) => upper_bytes(&image),
        image => image.into_rgb8(),
    })
}

/// The upper 8 bits of each 16-bit colour, without alpha.
fn upper_bytes<P: Pixel<Subpixel = u16>>(image: &ImageBuffer<P, Vec<u16>>) -> RgbImage {
    RgbImage::from_fn(image.width(), image.height(), |x, y| {
        let rgb = image.get_pixel(x, y).to_rgb();
        image::Rgb(rgb.0.map(|value| (value >> 8) as u8))
    })
}

/// Fills `out` with the pixels as floats from 0 to 1 (value / 255), as torchvision's `ToTensor`:
/// the plane of red, then green, then blue, each row by row, shape `[3, height, width]`.
///
/// # Panics
///
/// If `out` does not hold 3 x height x width values.
pub fn write_pixels(image: &RgbImage, out: &mut [f32]) {
    let plane = image.width() as usize * image.height() as usize;
    assert_eq!(out.len(), 3 * plane, "length of the pixels' destination");
    let (red, rest) = out.split_at_mut(plane);
    let (green, blue) = rest.split_at_mut(plane);
    let planes = red.iter_mut().zip(green).zip(blue);
    for (pixel, ((red, green), blue)) in image.pixels().zip(planes) {
        [*red, *green, *blue] = pixel.0.map(|value| f32::from(value) / 255.0);
    }
}
