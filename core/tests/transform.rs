//! Comparison of the transforms with results of torchvision and Pillow, saved by `fixtures/transform/make.py`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use cdl_core::transform::{
    CropBox, Exif, Interpolation, MAX_SIDE, TestTransform, TrainTransform, TransformConfig, decode,
    random_resized_crop_box, resize_center_crop, resized_crop, write_pixels,
};
use image::{Rgb, RgbImage, imageops};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

/// Bounds in grey levels of the maximum and the mean difference between this JPEG decoder and Pillow's (libjpeg-turbo).
/// Measured on the fixtures: 3 and 0.38. Most of it comes from the upsampling of colour; without subsampling, the
/// mean is 0.01.
const JPEG_MAX_DIFFERENCE: u8 = 4;
const JPEG_MEAN_DIFFERENCE: f64 = 0.45;

#[derive(Deserialize)]
struct Cases {
    resample: Vec<Resample>,
    decode: Vec<Decode>,
    orientations: Vec<Orientation>,
    crop_boxes: Vec<CropBoxes>,
}

#[derive(Deserialize, Debug)]
struct Resample {
    kind: Kind,
    input: String,
    interpolation: Interpolation,
    size: u32,
    resize: Option<u32>,
    r#box: Option<[u32; 4]>,
    expected: String,
}

#[derive(Deserialize, Debug, Clone, Copy, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Resize,
    ResizeCrop,
    ResizedCrop,
}

#[derive(Deserialize)]
struct Decode {
    input: String,
    expected: String,
    exact: bool,
}

/// File that stores the pixels of `orientation/1.png` and requests an orientation.
#[derive(Deserialize)]
struct Orientation {
    input: String,
    applied: String,
    exact: bool,
}

/// Means over crop boxes of torchvision. Lengths are fractions of the image's sides.
#[derive(Deserialize)]
struct CropBoxes {
    width: u32,
    height: u32,
    area: f64,
    area_squared: f64,
    log_ratio: f64,
    log_ratio_squared: f64,
    left: f64,
    top: f64,
    whole_width: f64,
    whole_height: f64,
}

fn read(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/transform");
    fs::read(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn open(name: &str) -> RgbImage {
    decode(&read(name), Exif::Ignore).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn cases() -> Cases {
    serde_json::from_slice(&read("cases.json")).unwrap()
}

fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// Returns the maximum and the mean absolute difference of two images of the same size.
fn differences(a: &RgbImage, b: &RgbImage) -> (u8, f64) {
    assert_eq!(a.dimensions(), b.dimensions());
    let all = || a.iter().zip(b.iter()).map(|(a, b)| a.abs_diff(*b));
    let mean = all().map(f64::from).sum::<f64>() / a.len() as f64;
    (all().max().unwrap_or(0), mean)
}

/// Creates an image in which all pixels differ, up to 256 x 256 pixels.
fn numbered(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| Rgb([x as u8, y as u8, (x * 7 + y) as u8]))
}

fn transform(case: &Resample, image: &RgbImage) -> RgbImage {
    let Resample { size, interpolation, .. } = *case;
    match (case.kind, case.resize, case.r#box) {
        (Kind::Resize, None, None) => resized_crop(image, CropBox::whole(image), size, interpolation),
        (Kind::ResizeCrop, Some(resize), None) => resize_center_crop(image, resize, size, interpolation),
        (Kind::ResizedCrop, None, Some([left, top, width, height])) => {
            let area = CropBox { left, top, width, height };
            resized_crop(image, area, size, interpolation)
        }
        _ => panic!("not a case: {case:?}"),
    }
}

#[test]
fn resampling_equals_torchvision() {
    let cases = cases().resample;
    assert!(!cases.is_empty());
    for case in cases {
        let image = open(&case.input);
        let (largest, _) = differences(&transform(&case, &image), &open(&case.expected));
        assert_eq!(largest, 0, "{case:?}");
    }
}

#[test]
fn configured_transforms_equal_torchvision() {
    for case in cases().resample {
        let test = match case.kind {
            Kind::Resize => TestTransform::Resize,
            Kind::ResizeCrop if case.resize >= Some(case.size) => TestTransform::ResizeCrop,
            Kind::ResizeCrop | Kind::ResizedCrop => continue,
        };
        let config = TransformConfig {
            image_size: case.size as usize,
            train: TrainTransform::Test,
            flip: false,
            test,
            resize: case.resize.map(|side| side as usize),
            interpolation: case.interpolation,
            ..Default::default()
        };
        assert_eq!(config.validate(), Ok(()));
        let image = open(&case.input);
        let result = config.test(&image);
        let (largest, _) = differences(&result, &open(&case.expected));
        assert_eq!(largest, 0, "{case:?}");
        assert_eq!(config.train(&image, &mut rng(0)), result);
    }
}

#[test]
fn default_resize_is_eight_sevenths_of_image_size() {
    let image = numbered(250, 201);
    for (image_size, resize) in [(224, 256), (32, 37), (1, 1), (84, 96)] {
        let config = TransformConfig { image_size, ..Default::default() };
        let expected = resize_center_crop(&image, resize, image_size as u32, Interpolation::Bilinear);
        assert_eq!(config.test(&image), expected);
    }
}

#[test]
fn decoding_equals_pillow() {
    for case in cases().decode {
        let (largest, mean) = differences(&open(&case.input), &open(&case.expected));
        let (max, max_mean) = match case.exact {
            true => (0, 0.0),
            false => (JPEG_MAX_DIFFERENCE, JPEG_MEAN_DIFFERENCE),
        };
        assert!(
            largest <= max && mean <= max_mean,
            "{}: {largest} grey levels, {mean:.3} on average",
            case.input
        );
    }
}

#[test]
fn orientations_are_applied_on_request_and_always_in_tiff() {
    let stored = open("orientation/1.png");
    let cases = cases().orientations;
    assert_eq!(cases.len(), 8 * 4);
    for Orientation { input, applied, exact } in cases {
        let max = if exact { 0 } else { JPEG_MAX_DIFFERENCE };
        let is = |exif: Exif, expected: &RgbImage| {
            let image = decode(&read(&input), exif).unwrap_or_else(|error| panic!("{input}: {error}"));
            let (largest, _) = differences(&image, expected);
            assert!(largest <= max, "{input}, {exif:?}: {largest} grey levels");
        };
        let applied = open(&applied);
        is(Exif::Apply, &applied);
        is(Exif::Ignore, if input.ends_with(".tiff") { &applied } else { &stored });
    }
}

#[test]
fn damaged_palette_tiffs_are_errors() {
    for (name, at, byte, word) in [
        // Number of bits, and number of palette entries, in the directory at 8 and at 16.
        ("decode_palette_1.tiff", 8 + 2 + 2 * 12 + 8, 16, "16 bits per pixel; expected 1, 2, 4 or 8"),
        ("decode_palette_1.tiff", 8 + 2 + 9 * 12 + 4, 3, "a TIFF palette of 3 values; expected 6"),
        ("decode_palette_4.tiff", 16 + 8 + 2 * 20 + 12, 2, "a TIFF palette of 48 values; expected 12"),
    ] {
        let mut bytes = read(name);
        bytes[at] = byte;
        let reason = decode(&bytes, Exif::Ignore).expect_err(name);
        assert!(reason.contains(word), "{name}: {reason}");
    }
    let whole = read("decode_palette_8.tiff");
    assert!(decode(&whole[..whole.len() - 1], Exif::Ignore).is_err());
}

#[test]
fn sixteen_bit_grey_decodes_to_its_upper_byte() {
    let bytes = read("decode_grey16.png");
    let wide = image::load_from_memory(&bytes).unwrap().into_luma16();
    let image = decode(&bytes, Exif::Ignore).unwrap();
    assert_eq!(image.dimensions(), wide.dimensions());
    for (pixel, value) in image.pixels().zip(wide.pixels()) {
        assert_eq!(pixel.0, [(value.0[0] / 256) as u8; 3]);
    }
}

/// An interrupted download leaves the first part of a file. Pillow reports "image file is truncated" for each of these.
#[test]
fn a_jpeg_without_its_end_is_an_error() {
    for name in ["decode_420.jpg", "decode_progressive.jpg", "decode_cmyk.jpg"] {
        let whole = read(name);
        decode(&whole, Exif::Ignore).expect(name);
        for missing in [1, 2, 3, 10, whole.len() / 10, whole.len() / 2, whole.len() * 9 / 10] {
            let reason = decode(&whole[..whole.len() - missing], Exif::Ignore).expect_err(name);
            assert!(reason.contains("truncated") || missing > whole.len() * 8 / 10, "{name}: {reason}");
        }
        // Bytes after the end are ignored: they are of another file, such as the second image of a stereo camera.
        decode(&[&whole[..], b"more"].concat(), Exif::Ignore).expect(name);
    }
}

#[test]
fn damaged_files_are_errors() {
    let whole = read("decode_rgb.png");
    assert!(decode(b"", Exif::Ignore).is_err());
    assert!(decode(b"not an image", Exif::Ignore).is_err());
    assert!(decode(&whole[..whole.len() / 2], Exif::Ignore).is_err());
}

#[test]
fn images_of_any_shape_are_transformed() {
    let sides = [1, 2, 3, 5, 31, 224, 225];
    let shapes = sides.iter().flat_map(|w| sides.iter().map(move |h| (*w, *h)));
    for (width, height) in shapes.chain([(1, 20_000), (20_000, 1)]) {
        let image = numbered(width, height);
        let mut rng = rng(1);
        for interpolation in [Interpolation::Bilinear, Interpolation::Bicubic] {
            for test in [TestTransform::Resize, TestTransform::ResizeCrop] {
                for image_size in [1, 8, 31] {
                    let config = TransformConfig { image_size, test, interpolation, ..Default::default() };
                    let square = (image_size as u32, image_size as u32);
                    assert_eq!(config.test(&image).dimensions(), square);
                    assert_eq!(config.train(&image, &mut rng).dimensions(), square);
                }
            }
        }
    }
}

#[test]
fn lengths_of_0_give_empty_or_black_images() {
    let image = numbered(4, 3);
    let whole = CropBox::whole(&image);
    let empty = resized_crop(&image, whole, 0, Interpolation::Bilinear);
    assert_eq!(empty.dimensions(), (0, 0));
    let black = resize_center_crop(&image, 0, 5, Interpolation::Bilinear);
    assert_eq!(black, RgbImage::new(5, 5));
}

#[test]
fn extreme_down_scaling_keeps_a_constant_colour() {
    let image = RgbImage::from_pixel(1, 20_000, Rgb([255, 128, 0]));
    for interpolation in [Interpolation::Bilinear, Interpolation::Bicubic] {
        let small = resized_crop(&image, CropBox::whole(&image), 3, interpolation);
        let expected = RgbImage::from_pixel(3, 3, Rgb([255, 128, 0]));
        assert_eq!(small, expected);
    }
}

#[test]
fn a_box_beyond_the_image_is_clipped() {
    let image = numbered(20, 10);
    let at = |left, top, width, height| {
        let area = CropBox { left, top, width, height };
        resized_crop(&image, area, 8, Interpolation::Bilinear)
    };
    assert_eq!(at(15, 6, 100, u32::MAX), at(15, 6, 5, 4));
    assert_eq!(at(100, 100, 3, 3), at(19, 9, 1, 1));
    assert_eq!(at(4, 5, 0, 0), at(4, 5, 1, 1));
}

#[test]
fn crop_boxes_are_inside_the_image_and_within_scale_and_ratio() {
    let scale = [0.08, 1.0];
    let ratio = [3.0 / 4.0, 4.0 / 3.0];
    let sizes = [(500, 375), (32, 32), (1, 1), (1, 7), (7, 1), (100, 20), (3, 4)];
    for (width, height) in sizes {
        let mut rng = rng(2);
        for _ in 0..2_000 {
            let area = random_resized_crop_box(width, height, scale, ratio, &mut rng);
            assert!(area.width >= 1 && area.left + area.width <= width);
            assert!(area.height >= 1 && area.top + area.height <= height);

            // Each side is rounded by up to half a pixel.
            let (w, h) = (f64::from(area.width), f64::from(area.height));
            assert!((w + 0.5) / (h - 0.5) >= ratio[0] - 1e-9, "{area:?}");
            assert!((w - 0.5) / (h + 0.5) <= ratio[1] + 1e-9, "{area:?}");
            let whole = f64::from(width) * f64::from(height);
            assert!((w + 0.5) * (h + 0.5) >= scale[0] * whole, "{area:?}");
            assert!((w - 0.5) * (h - 0.5) <= scale[1] * whole, "{area:?}");
        }
    }
}

#[test]
fn crop_boxes_that_cannot_fit_are_the_largest_in_the_centre() {
    let fallback = |width, height, ratio| {
        let area = random_resized_crop_box(width, height, [1.0, 1.0], ratio, &mut rng(3));
        (area.left, area.top, area.width, area.height)
    };
    // 15 x 4 / 3 = 20; 15 / (3 / 4) = 20; 5 x 0.9 = 4.5, which Python rounds to the even 4.
    assert_eq!(fallback(101, 15, [0.75, 4.0 / 3.0]), (40, 0, 20, 15));
    assert_eq!(fallback(15, 101, [0.75, 4.0 / 3.0]), (0, 40, 15, 20));
    assert_eq!(fallback(50, 5, [0.8, 0.9]), (23, 0, 4, 5));
    // A box without pixels, for which torchvision fails.
    assert_eq!(fallback(9, 1, [0.1, 0.2]), (4, 0, 1, 1));
}

#[test]
fn crop_boxes_have_the_distribution_of_torchvision() {
    const DRAWS: usize = 20_000;
    for case in cases().crop_boxes {
        let (width, height) = (f64::from(case.width), f64::from(case.height));
        let scale = [0.08, 1.0];
        let ratio = [3.0 / 4.0, 4.0 / 3.0];
        let mut rng = rng(4);
        let boxes: Vec<CropBox> = (0..DRAWS)
            .map(|_| random_resized_crop_box(case.width, case.height, scale, ratio, &mut rng))
            .collect();
        let mean =
            |value: &dyn Fn(&CropBox) -> f64| boxes.iter().map(value).sum::<f64>() / boxes.len() as f64;
        let area = |b: &CropBox| f64::from(b.width) * f64::from(b.height) / (width * height);
        let log_ratio = |b: &CropBox| (f64::from(b.width) / f64::from(b.height)).ln();

        // About four standard errors of the difference of two means over this number of draws.
        for (name, ours, theirs, tolerance) in [
            ("area", mean(&area), case.area, 0.01),
            ("area squared", mean(&|b| area(b).powi(2)), case.area_squared, 0.01),
            ("log ratio", mean(&log_ratio), case.log_ratio, 0.007),
            ("log ratio squared", mean(&|b| log_ratio(b).powi(2)), case.log_ratio_squared, 0.002),
            ("left", mean(&|b| f64::from(b.left) / width), case.left, 0.01),
            ("top", mean(&|b| f64::from(b.top) / height), case.top, 0.01),
            ("boxes of the whole width", mean(&|b| (b.width == case.width).into()), case.whole_width, 0.02),
            (
                "boxes of the whole height",
                mean(&|b| (b.height == case.height).into()),
                case.whole_height,
                0.02,
            ),
        ] {
            assert!(
                (ours - theirs).abs() <= tolerance,
                "{name} of {width} x {height}: {ours}, torchvision {theirs}"
            );
        }
    }
}

#[test]
fn half_of_the_training_images_are_mirrored() {
    let image = numbered(40, 30);
    let mut config = TransformConfig { image_size: 16, train: TrainTransform::Test, ..Default::default() };
    let plain = config.test(&image);
    let mirrored = imageops::flip_horizontal(&plain);

    let mut rng = rng(5);
    let mut flips = 0;
    for _ in 0..1_000 {
        let result = config.train(&image, &mut rng);
        assert!(result == plain || result == mirrored);
        flips += usize::from(result == mirrored);
    }
    assert!((430..=570).contains(&flips), "{flips} of 1000");

    config.flip = false;
    for _ in 0..100 {
        assert_eq!(config.train(&image, &mut rng), plain);
    }
}

#[test]
fn training_transforms_depend_only_on_the_seed() {
    let image = numbered(120, 90);
    let config = TransformConfig { image_size: 24, ..Default::default() };
    let images = |seed| {
        let mut rng = rng(seed);
        [(); 8].map(|()| config.train(&image, &mut rng))
    };
    assert_eq!(images(6), images(6));
    assert_ne!(images(6), images(7));
}

#[test]
fn pixels_are_written_as_planes_from_0_to_1() {
    let image = RgbImage::from_raw(2, 1, vec![0, 51, 255, 255, 102, 1]).unwrap();
    let mut pixels = [f32::NAN; 6];
    write_pixels(&image, &mut pixels);
    assert_eq!(pixels, [0.0, 1.0, 0.2, 0.4, 1.0, 1.0 / 255.0]);
}

#[test]
fn configurations_are_read_with_defaults_and_unknown_keys_refused() {
    let read = serde_json::from_str::<TransformConfig>;
    let default = read("{}").unwrap();
    assert_eq!(default, TransformConfig::default());
    assert_eq!(default.validate(), Ok(()));

    let config =
        read(r#"{"image_size": 32, "train": "test", "test": "resize", "interpolation": "bicubic"}"#).unwrap();
    let expected = TransformConfig {
        image_size: 32,
        train: TrainTransform::Test,
        test: TestTransform::Resize,
        interpolation: Interpolation::Bicubic,
        ..Default::default()
    };
    assert_eq!(config, expected);
    assert_eq!(config.validate(), Ok(()));

    assert!(read(r#"{"size": 32}"#).is_err());
    assert!(read(r#"{"interpolation": "lanczos"}"#).is_err());
}

#[test]
fn invalid_values_are_refused_with_key_and_value() {
    let default = TransformConfig::default;
    let with_scale = |scale| TransformConfig { scale, ..default() };
    let with_ratio = |ratio| TransformConfig { ratio, ..default() };
    let with_sides = |image_size, resize| TransformConfig { image_size, resize, ..default() };
    for (config, key, value) in [
        (with_sides(0, None), "`image_size`", "0"),
        (with_sides(MAX_SIDE + 1, None), "`image_size`", "16385"),
        (with_sides(MAX_SIDE, None), "`image_size`", "16384"),
        (with_sides(usize::MAX, None), "`image_size`", "16384"),
        (with_sides(224, Some(223)), "`resize`", "223"),
        (with_sides(224, Some(MAX_SIDE + 1)), "`resize`", "16385"),
        (with_scale([0.0, 1.0]), "`scale`", "[0.0, 1.0]"),
        (with_scale([0.5, 0.4]), "`scale`", "[0.5, 0.4]"),
        (with_scale([0.5, 1.1]), "`scale`", "[0.5, 1.1]"),
        (with_scale([f64::NAN, 1.0]), "`scale`", "[NaN, 1.0]"),
        (with_ratio([-1.0, 1.0]), "`ratio`", "[-1.0, 1.0]"),
        (with_ratio([2.0, 1.0]), "`ratio`", "[2.0, 1.0]"),
        (with_ratio([1.0, f64::INFINITY]), "`ratio`", "[1.0, inf]"),
        (with_ratio([1.0, f64::NAN]), "`ratio`", "[1.0, NaN]"),
    ] {
        let message = config.validate().unwrap_err();
        assert!(message.starts_with(key), "{message}");
        assert!(message.contains(value), "{message}");
        assert!(message.contains("expected"), "{message}");
    }

    let mut straight = with_sides(224, Some(10));
    straight.test = TestTransform::Resize;
    assert_eq!(straight.validate(), Ok(()), "`resize` is not used");
    assert_eq!(with_sides(MAX_SIDE, Some(MAX_SIDE)).validate(), Ok(()));
    assert_eq!(with_ratio([1.0, 1.0]).validate(), Ok(()));
}
