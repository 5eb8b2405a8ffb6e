//! Decoding of image files.

use std::{borrow::Cow, io::Cursor};

use image::{
    DynamicImage, ImageBuffer, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, Pixel, RgbImage,
    metadata::Orientation,
};

use super::{Exif, gif_frame, jpeg, palette_tiff};
use crate::system::panics;

/// Maximum size in bytes of the pixels of an image, as stored and as RGB. This is Pillow's limit. A small file can
/// state, and even contain, far more.
const MAX_BYTES: u64 = 512 << 20;

/// Maximum width and height in pixels: the limit of JPEG and GIF, and small enough that resizing a long and thin image
/// needs little memory.
const MAX_LENGTH: u32 = 65_535;

/// Maximum number of characters in a message about a damaged file.
const MAX_REASON: usize = 500;

/// Decodes an image file to 8-bit RGB, like `Image.open(file).convert("RGB")` in PIL. The first bytes determine the
/// format.
///
/// | file | PIL | here |
/// |---|---|---|
/// | grey | replicated | the same |
/// | palette, also with transparency | looked up, transparency dropped without blending | the same |
/// | alpha (RGBA, LA) | dropped without blending | the same |
/// | 16-bit colour | upper 8 bits | the same |
/// | 16-bit grey | clipped: every value above 255 is white | upper 8 bits, a deliberate difference |
/// | CMYK JPEG | (255 - C)(255 - K) / 255 | the same formula |
/// | orientation in EXIF data of JPEG, PNG, WebP | not applied | [`Exif`] decides |
/// | orientation in a TIFF file | applied | the same |
/// | animation | first frame | first frame |
/// | JPEG | libjpeg-turbo | within 4 grey levels, less than half of one on average; most of that comes from the upsampling of colour |
///
/// # Errors
///
/// A damaged file, pixels of more than 512 MiB, or a side of more than 65,535 pixels. The error is a message.
pub fn decode(bytes: &[u8], exif: Exif) -> Result<RgbImage, String> {
    // The decoders panic on some damaged files.
    panics::catch(|| decode_unguarded(bytes, exif))
        .unwrap_or_else(|message| Err(format!("the decoder panicked: {message}")))
        .map_err(|mut reason| {
            // Decoders quote contents of the file, which can be of any length.
            if let Some((end, _)) = reason.char_indices().nth(MAX_REASON) {
                reason.truncate(end);
                reason.push_str("...");
            }
            reason
        })
}

fn decode_unguarded(bytes: &[u8], exif: Exif) -> Result<RgbImage, String> {
    let fail = |error: ImageError| error.to_string();
    let format = match bytes {
        // BigTIFF. The decoder reads this format, but `guess_format` does not recognise it.
        [b'I', b'I', 43, 0, ..] | [b'M', b'M', 0, 43, ..] => ImageFormat::Tiff,
        _ => image::guess_format(bytes).map_err(|_| {
            "its format is unknown; expected PNG, JPEG, GIF, WebP, TIFF, BMP or PNM: convert it to one of them".to_owned()
        })?,
    };
    let mut bytes = Cow::Borrowed(bytes);
    if format == ImageFormat::Jpeg {
        if jpeg::is_truncated(&bytes) {
            return Err("the file is truncated: it has no end-of-image marker".into());
        }
        jpeg::rename_components(&mut bytes);
    }
    let bytes = bytes.as_ref();
    if format == ImageFormat::Tiff {
        let check = |width, height| check_size(width, height, 0).map(|()| MAX_BYTES as usize);
        if let Some((image, orientation)) = palette_tiff::decode(bytes, check)? {
            return Ok(oriented(image, orientation));
        }
    }
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MAX_BYTES);
    reader.limits(limits.clone());
    let mut decoder = reader.into_decoder().map_err(fail)?;
    let (width, height) = decoder.dimensions();
    check_size(width, height, decoder.total_bytes())?;
    let orientation = match (format, exif) {
        (ImageFormat::Tiff, _) | (_, Exif::Apply) => decoder.orientation().map_err(fail)?,
        (_, Exif::Ignore) => Orientation::NoTransforms,
    };
    decoder.set_limits(limits).map_err(fail)?;
    let mut image = match DynamicImage::from_decoder(decoder).map_err(fail)? {
        DynamicImage::ImageLuma16(image) => upper_bytes(&image),
        DynamicImage::ImageLumaA16(image) => upper_bytes(&image),
        DynamicImage::ImageRgb16(image) => upper_bytes(&image),
        DynamicImage::ImageRgba16(image) => upper_bytes(&image),
        image => image.into_rgb8(),
    };
    if format == ImageFormat::Gif {
        gif_frame::fill_surroundings(bytes, &mut image)?;
    }
    Ok(oriented(image, orientation))
}

/// Checks width and height of an image, and the size of its pixels as stored and as RGB.
fn check_size(width: u32, height: u32, stored: u64) -> Result<(), String> {
    if width == 0 || height == 0 {
        return Err("the image has no pixels".to_string());
    }
    if width.max(height) > MAX_LENGTH {
        return Err(format!("{width} x {height} pixels; expected sides of at most {MAX_LENGTH}"));
    }
    if stored.max(3 * u64::from(width) * u64::from(height)) > MAX_BYTES {
        let mebibytes = MAX_BYTES >> 20;
        return Err(format!("{width} x {height} pixels; expected at most {mebibytes} MiB of pixels"));
    }
    Ok(())
}

/// Mirrors and rotates an image.
fn oriented(image: RgbImage, orientation: Orientation) -> RgbImage {
    let mut image = DynamicImage::ImageRgb8(image);
    image.apply_orientation(orientation);
    image.into_rgb8()
}

/// Converts 16-bit colours to their upper 8 bits and drops alpha.
fn upper_bytes<P: Pixel<Subpixel = u16>>(image: &ImageBuffer<P, Vec<u16>>) -> RgbImage {
    RgbImage::from_fn(image.width(), image.height(), |x, y| {
        let rgb = image.get_pixel(x, y).to_rgb();
        image::Rgb(rgb.0.map(|value| (value >> 8) as u8))
    })
}
