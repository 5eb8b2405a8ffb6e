//! Test that decoding of damaged and malicious image files ends with an image or an error message, in bounded memory.
//!
//! The only test of its process, whose peak memory it measures.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::{fs, path::Path};

use cdl_core::{
    image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder},
    rng::Rng,
    system::memory::peak_bytes,
    transform::{Exif, TestTransform, TransformConfig, decode},
};
use rand::RngExt;

/// Number of mutations of each file.
const MUTATIONS: usize = 3_000;
/// Maximum memory: the pixels of one image as stored and as RGB, and the working memory of decoders.
const MEMORY: u64 = (512 + 512 + 256) << 20;

/// Returns all input images of the fixtures, sorted by name.
fn files() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/transform");
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_stem().unwrap().to_string_lossy().starts_with("decode_"))
        .filter(|path| !path.file_stem().unwrap().to_string_lossy().ends_with("_expected"))
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}

/// Applies one to four random changes.
fn mutate(bytes: &mut Vec<u8>, rng: &mut Rng) {
    for _ in 0..rng.random_range(1..=4) {
        // Half of the changes are in the header, which contains the sizes.
        let reach = if rng.random() { bytes.len() } else { bytes.len().min(64) };
        if reach < 8 {
            return;
        }
        let at = rng.random_range(0..reach);
        match rng.random_range(0..6) {
            0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes[at] = rng.random(),
            2 => {
                let extreme = [0u32, 1, 0x7fff_ffff, 0x8000_0000, u32::MAX, 0xffff, 0x0001_0000];
                let value = extreme[rng.random_range(0..extreme.len())];
                let value = if rng.random() { value.to_be_bytes() } else { value.to_le_bytes() };
                for (byte, value) in bytes[at..].iter_mut().zip(value) {
                    *byte = value;
                }
            }
            3 => bytes.truncate(at),
            4 => {
                let end = rng.random_range(at..bytes.len());
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            _ => {
                let end = bytes.len().min(at + rng.random_range(1..32));
                bytes.drain(at..end);
            }
        }
    }
}

/// Recomputes the checksums of a PNG file's chunks, so that decoding reaches the contents of the chunks.
fn update_png_checksums(bytes: &mut [u8]) {
    let mut at = 8;
    while let Some(length) = bytes.get(at..at + 4) {
        let length = u32::from_be_bytes(length.try_into().unwrap()) as usize;
        let end = at.saturating_add(8).saturating_add(length);
        let Some(chunk) = bytes.get(at + 4..end) else { return };
        let mut crc = u32::MAX;
        for byte in chunk {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
            }
        }
        if let Some(sum) = bytes.get_mut(end..end + 4) {
            sum.copy_from_slice(&(!crc).to_be_bytes());
        }
        at = end.saturating_add(4);
    }
}

/// Encodes a PNG file of black pixels.
fn grey_png(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let pixels = vec![0; width as usize * height as usize];
    PngEncoder::new(&mut bytes).write_image(&pixels, width, height, ExtendedColorType::L8).unwrap();
    bytes
}

#[test]
fn malicious_files_give_an_image_or_an_error_in_bounded_memory() {
    let files = files();
    for format in ["png", "jpg", "gif", "bmp", "webp", "tiff", "ppm"] {
        assert!(files.iter().any(|(name, _)| name.ends_with(format)), "no {format} file to start from");
    }
    let (mut images, mut errors) = (0, 0);
    for (name, bytes) in &files {
        for mutation in 0..MUTATIONS {
            let mut rng = Rng::new(1).derive(&format!("{name} {mutation}"));
            let mut bytes = bytes.clone();
            mutate(&mut bytes, &mut rng);
            if bytes.starts_with(b"\x89PNG") && rng.random() {
                update_png_checksums(&mut bytes);
            }
            let outcome = std::panic::catch_unwind(|| decode(&bytes, Exif::Ignore));
            match outcome.unwrap_or_else(|_| panic!("decoding panicked: {name}, mutation {mutation}")) {
                Ok(image) => {
                    assert!(image.width() > 0 && image.height() > 0);
                    images += 1;
                }
                Err(reason) => {
                    assert!(!reason.is_empty());
                    errors += 1;
                }
            }
        }
    }
    // The mutations must produce both valid images and errors.
    assert!(images > 100 && errors > 100, "{images} images, {errors} errors");

    // Decompression bombs: small files that state more pixels than an image may have.
    let whole = |name: &str| files.iter().find(|(file, _)| file == name).unwrap().1.clone();
    let mut png = whole("decode_grey.png");
    png[16..24].copy_from_slice(&[0, 0, 0x75, 0x30, 0, 0, 0x75, 0x30]);
    update_png_checksums(&mut png);
    let mut bmp = whole("decode_rgb.bmp");
    bmp[18..26].copy_from_slice(&[0x30, 0x75, 0, 0, 0x30, 0x75, 0, 0]);
    let mut jpeg = whole("decode_444.jpg");
    let frame = jpeg.windows(2).position(|marker| marker == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0x75, 0x30, 0x75, 0x30]);
    for (format, bytes) in [("PNG", png), ("BMP", bmp), ("JPEG", jpeg)] {
        let reason = decode(&bytes, Exif::Ignore).expect_err("900 million pixels");
        assert!(reason.contains("30000 x 30000") && reason.contains("512 MiB"), "{format}: {reason}");
    }

    // Long and thin images: the longest allowed ones pass every transform, longer ones are refused.
    for (width, height) in [(65_535, 1), (1, 65_535)] {
        let image = decode(&grey_png(width, height), Exif::Ignore).expect("an image");
        for test in [TestTransform::Resize, TestTransform::ResizeCrop] {
            let transform = TransformConfig { test, ..Default::default() };
            assert_eq!(transform.test(&image).dimensions(), (224, 224));
            transform.train(&image, &mut Rng::new(0));
        }
    }
    for (width, height) in [(65_536, 1), (1, 65_536), (178_000_000, 1)] {
        let reason = decode(&grey_png(width, height), Exif::Ignore).expect_err("too long");
        assert!(reason.contains(&format!("{width} x {height}")) && reason.contains("65535"), "{reason}");
    }

    // A palette whose last colour lacks its blue value, on which a decoder panicked.
    let mut palette = whole("decode_palette_alpha.png");
    let start = palette.windows(4).position(|kind| kind == b"PLTE").unwrap();
    let length = u32::from_be_bytes(palette[start - 4..start].try_into().unwrap());
    palette.remove(start + 3 + length as usize);
    palette[start - 4..start].copy_from_slice(&(length - 1).to_be_bytes());
    update_png_checksums(&mut palette);
    assert!(decode(&palette, Exif::Ignore).is_err());

    // A TIFF file with long lists: 33,000 characters of the decoder's message quote them, so the message is shortened.
    let lists = include_bytes!("fixtures/hostile/long_message.tiff");
    let reason = decode(lists, Exif::Ignore).expect_err("no image");
    assert!(
        reason.chars().count() <= 503 && reason.ends_with("..."),
        "{} characters",
        reason.chars().count()
    );

    if let Some(peak) = peak_bytes() {
        assert!(peak < MEMORY, "peak memory {} MB", peak / 1_000_000);
    }
}
