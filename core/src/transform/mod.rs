//! Image decoding, and transforms of decoded images to the input of the networks.
//!
//! Every transform gives exactly the result of torchvision on a PIL image, so that accuracies can be compared with
//! results published for PyTorch, and the same result on every machine. As in PIL, pixels stay 8-bit integers;
//! [`write_pixels`] converts them to floats.
//!
//! The reference is Pillow up to 12.1, which resizes the rows of every image before its columns. Pillow 12.2 and 13.0
//! swap the two for some tall images; their results differ there if a bicubic filter overshoots black or white.

mod decode;
mod gif_frame;
mod jpeg;
mod palette_tiff;
mod resample;

use std::path::Path;

use image::{RgbImage, imageops};
use rand::{Rng, RngExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use crate::transform::decode::decode;
use crate::{
    error::Error,
    system::files,
    transform::resample::{Axis, resample},
};

/// Maximum of `image_size` and `resize` in pixels: far above the input of any network, and small enough that one image
/// fits into memory.
pub const MAX_SIDE: usize = 16_384;

/// Number of random boxes that torchvision's `RandomResizedCrop` tries.
const CROP_TRIES: usize = 10;

/// Transform of images to the square input of the networks, in training and in testing.
///
/// Each step equals the torchvision transform of the same name on a PIL image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TransformConfig {
    /// Side of the networks' input images in pixels.
    pub image_size: usize,
    /// Transform of a training image before the flip.
    pub train: TrainTransform,
    /// Smallest and largest area of a random crop, as fractions of the image's area, for
    /// `train = "random_resized_crop"`.
    pub scale: [f64; 2],
    /// Smallest and largest aspect ratio (width / height) of a random crop, for `train = "random_resized_crop"`.
    pub ratio: [f64; 2],
    /// Whether a training image is mirrored left to right with probability 1/2.
    pub flip: bool,
    /// Transform of a test image.
    pub test: TestTransform,
    /// Length in pixels to which the shorter side is resized before the centre crop, at least `image_size`, for
    /// `test = "resize_crop"`. Default: `image_size` x 256 / 224, rounded.
    pub resize: Option<usize>,
    /// Filter of all resizing. Both filters are antialiased: they widen when the image shrinks.
    pub interpolation: Interpolation,
    /// `ignore`, as published: pixels stay as stored; `apply`: the orientation in the EXIF data of JPEG, PNG and WebP
    /// files rotates and mirrors the image. That of TIFF files is always applied, as in Pillow.
    pub exif: Exif,
}

/// Treatment of the orientation in the EXIF data of JPEG, PNG and WebP files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Exif {
    /// Pixels stay as stored, like `Image.open` in Pillow.
    #[default]
    Ignore,
    /// The image is rotated and mirrored, like `ImageOps.exif_transpose` in Pillow.
    Apply,
}

/// Transform of a training image before the flip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TrainTransform {
    /// A box of random area, aspect ratio and position is cut out and resized to the square.
    #[default]
    RandomResizedCrop,
    /// The transform of a test image.
    Test,
}

/// Transform of a test image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TestTransform {
    /// Both sides are resized to `image_size`, ignoring the aspect ratio (as published for CIFAR).
    Resize,
    /// The shorter side is resized to `resize`, keeping the aspect ratio, and the square is cut out of the centre.
    #[default]
    ResizeCrop,
}

/// Filter for resizing, antialiased as in Pillow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Interpolation {
    /// Triangle filter.
    #[default]
    Bilinear,
    /// Cubic filter with a = -0.5 (Catmull-Rom).
    Bicubic,
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
            exif: Exif::default(),
        }
    }
}

impl TransformConfig {
    /// Checks the ranges of all values. An error is a message with the first invalid key, its value and the accepted
    /// range.
    pub fn validate(&self) -> Result<(), String> {
        let Self { image_size, scale, ratio, resize, .. } = *self;
        if !(1..=MAX_SIDE).contains(&image_size) {
            return Err(format!("`image_size` is {image_size}; expected 1 to {MAX_SIDE} pixels"));
        }
        if !(is_ascending_positive(scale) && scale[1] <= 1.0) {
            return Err(format!(
                "`scale` is {scale:?}; expected the smallest and the largest area of a crop as fractions of the \
                 image's area: 0 < smallest <= largest <= 1"
            ));
        }
        if !is_ascending_positive(ratio) {
            return Err(format!(
                "`ratio` is {ratio:?}; expected the smallest and the largest width / height of a crop: \
                 0 < smallest <= largest, both finite"
            ));
        }
        if self.test == TestTransform::ResizeCrop {
            let side = self.resize_side();
            if !(image_size..=MAX_SIDE).contains(&side) {
                return Err(match resize {
                    Some(_) => format!(
                        "`resize` is {side}; expected {image_size} (`image_size`) to {MAX_SIDE} pixels, since a \
                         square of `image_size` is cut out of the resized image"
                    ),
                    None => format!(
                        "`image_size` is {image_size}, so that the default of `resize` is {side}; expected at most \
                         {MAX_SIDE} pixels; set `resize`"
                    ),
                });
            }
        }
        Ok(())
    }

    /// Reads and decodes an image file. An error contains the file name.
    pub fn open(&self, file: &Path) -> crate::error::Result<RgbImage> {
        let fail = |reason: String| Error::data(file, reason);
        let bytes = files::read(file).map_err(|e| fail(format!("cannot be read: {e}")))?;
        decode(&bytes, self.exif).map_err(|e| fail(format!("is not a readable image: {e}")))
    }

    /// Transforms a training image. Returns a square of `image_size`.
    ///
    /// The configuration must be [valid](Self::validate). The same image and state of `rng` give the same result.
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
                resized_crop(image, CropBox::whole(image), self.side(), self.interpolation)
            }
            TestTransform::ResizeCrop => {
                resize_center_crop(image, as_side(self.resize_side()), self.side(), self.interpolation)
            }
        }
    }

    fn side(&self) -> u32 {
        as_side(self.image_size)
    }

    /// Returns `resize` or its default: `image_size` * 256 / 224 = `image_size` * 8 / 7, rounded.
    fn resize_side(&self) -> usize {
        self.resize.unwrap_or_else(|| self.image_size.saturating_mul(16).saturating_add(7) / 14)
    }
}

/// Returns whether `0 < low <= high < infinity`. False if one of them is NaN.
fn is_ascending_positive([low, high]: [f64; 2]) -> bool {
    0.0 < low && low <= high && high.is_finite()
}

/// Converts a configured side to pixels. Sides that [`TransformConfig::validate`] rejects are clamped.
fn as_side(side: usize) -> u32 {
    side.clamp(1, MAX_SIDE) as u32
}

/// Box of whole pixels in an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CropBox {
    /// Number of columns to the left of the box.
    pub left: u32,
    /// Number of rows above the box.
    pub top: u32,
    /// Number of columns in the box.
    pub width: u32,
    /// Number of rows in the box.
    pub height: u32,
}

impl CropBox {
    /// Returns the box that contains all of `image`.
    pub fn whole(image: &RgbImage) -> Self {
        Self { left: 0, top: 0, width: image.width(), height: image.height() }
    }

    /// Returns the part of the box inside an image of `width` x `height` pixels, or the nearest pixels if there is no
    /// such part: at least one pixel.
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

/// Draws the box of torchvision's `RandomResizedCrop` (`get_params`) for an image of `width` x `height` pixels,
/// neither 0.
///
/// `scale` bounds the area of the box as a fraction of the image's area, `ratio` its width / height. The area is
/// uniform in `scale` and the logarithm of the aspect ratio is uniform, both before the sides are rounded to pixels.
/// If ten such boxes do not fit into the image, the result is the largest box in the centre with an aspect ratio
/// within `ratio`, regardless of `scale`.
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
    // A side rounds to 0 if the image is narrow and `ratio` extreme. In this case torchvision fails.
    let (w, h) = (w.clamp(1, width), h.clamp(1, height));
    CropBox { left: (width - w) / 2, top: (height - h) / 2, width: w, height: h }
}

/// Draws a uniform number from `low` to `high`.
fn uniform<R: Rng + ?Sized>([low, high]: [f64; 2], rng: &mut R) -> f64 {
    low + (high - low) * rng.random::<f64>()
}

/// Rounds like Python's `round`: halves to the even neighbour. The result saturates; NaN gives 0.
fn round_to_pixels(length: f64) -> u32 {
    length.round_ties_even() as u32
}

/// Cuts `area` out of `image` and resizes it to a square of `side` pixels, like torchvision's `resized_crop`: pixels
/// outside `area` have no influence. A box that extends beyond the image is clipped.
pub fn resized_crop(image: &RgbImage, area: CropBox, side: u32, interpolation: Interpolation) -> RgbImage {
    let area = area.clipped(image.width(), image.height());
    resample(image, area, Axis::whole(area.width, side), Axis::whole(area.height, side), interpolation)
}

/// Resizes `image` so that its shorter side is `resize` pixels and cuts a square of `side` pixels out of the centre,
/// like torchvision's `Resize(resize)` and `CenterCrop(side)`. A resized image smaller than the square is centred on
/// black.
///
/// Only the square is computed: the whole resized image would be huge if `image` is long and thin.
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

/// Fills `out` with the pixels as floats from 0 to 1 (value / 255), like torchvision's `ToTensor`: shape
/// `[3, height, width]`, the planes of red, green and blue, each row by row.
///
/// # Panics
///
/// If the length of `out` is not 3 x height x width.
pub fn write_pixels(image: &RgbImage, out: &mut [f32]) {
    let plane = image.width() as usize * image.height() as usize;
    assert_eq!(out.len(), 3 * plane, "length of `out`");
    let (red, rest) = out.split_at_mut(plane);
    let (green, blue) = rest.split_at_mut(plane);
    let planes = red.iter_mut().zip(green).zip(blue);
    for (pixel, ((red, green), blue)) in image.pixels().zip(planes) {
        [*red, *green, *blue] = pixel.0.map(|value| f32::from(value) / 255.0);
    }
}
