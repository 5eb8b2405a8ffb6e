//! TIFF files with a palette, which the decoder refuses.

use std::io::Cursor;

use image::{Rgb, RgbImage, metadata::Orientation};
use tiff::{
    TiffError,
    decoder::{Decoder, DecodingResult, Limits},
    tags::Tag,
};

/// Values of the tag `PhotometricInterpretation`.
const BLACK_IS_ZERO: u8 = 1;
const PALETTE: u8 = 3;

/// Decodes the first image of a file with a palette as PIL does: the upper 8 bits of each colour. `None` for a file
/// without a palette or with a damaged directory, which the general decoder handles. `check` accepts or refuses an image
/// by its width and height and returns the maximum number of bytes of its indices.
///
/// # Errors
/// A damaged file, or a palette of an unusual form, with the reason.
pub(super) fn decode(
    bytes: &[u8],
    check: impl Fn(u32, u32) -> Result<usize, String>,
) -> Result<Option<(RgbImage, Orientation)>, String> {
    let fail = |error: TiffError| error.to_string();
    let Ok(mut file) = Decoder::new(Cursor::new(bytes)) else { return Ok(None) };
    let interpretation = file.find_tag_unsigned::<u8>(Tag::PhotometricInterpretation);
    if !matches!(interpretation, Ok(Some(PALETTE))) {
        return Ok(None);
    }
    let (width, height) = file.dimensions().map_err(fail)?;
    let limit = check(width, height)?;
    let bits =
        file.find_tag_unsigned_vec::<u16>(Tag::BitsPerSample).map_err(fail)?.unwrap_or_else(|| vec![1]);
    let bits = match bits[..] {
        [bits @ (1 | 2 | 4 | 8)] => usize::from(bits),
        _ => {
            let found: Vec<String> = bits.iter().map(u16::to_string).collect();
            return Err(format!(
                "a TIFF file with a palette and {} bits per pixel; expected 1, 2, 4 or 8: convert it to PNG",
                found.join(" + ")
            ));
        }
    };
    // All red values, then all green, then all blue ones.
    let colours = file.find_tag_unsigned_vec::<u16>(Tag::ColorMap).map_err(fail)?.unwrap_or_default();
    let size = 1 << bits;
    if colours.len() != 3 * size {
        return Err(format!("a TIFF palette of {} values; expected {}", colours.len(), 3 * size));
    }
    let orientation = file.find_tag_unsigned::<u8>(Tag::Orientation).map_err(fail)?;
    let orientation = orientation.and_then(Orientation::from_exif).unwrap_or(Orientation::NoTransforms);

    let at = interpretation_at(bytes).ok_or("a TIFF directory that cannot be read")?;
    let mut grey = bytes.to_vec();
    // In a copy that is declared as grey, the decoder returns the indices as stored.
    grey[at..at + 2].iter_mut().for_each(|byte| {
        if *byte == PALETTE {
            *byte = BLACK_IS_ZERO;
        }
    });
    let mut limits = Limits::default();
    limits.decoding_buffer_size = limit;
    limits.intermediate_buffer_size = limit;
    let indices = Decoder::new(Cursor::new(grey)).map_err(fail)?.with_limits(limits).read_image();
    let DecodingResult::U8(indices) = indices.map_err(fail)? else {
        return Err("a TIFF palette whose indices are not bytes".into());
    };
    let row_bytes = (width as usize * bits).div_ceil(8);
    if indices.len() < row_bytes * height as usize {
        return Err("a TIFF file whose pixels end early".into());
    }
    let image = RgbImage::from_fn(width, height, |x, y| {
        let bit = x as usize * bits;
        let byte = indices[y as usize * row_bytes + bit / 8];
        let index = usize::from(byte >> (8 - bits - bit % 8)) & (size - 1);
        Rgb([0, size, 2 * size].map(|channel| (colours[channel + index] >> 8) as u8))
    });
    Ok(Some((image, orientation)))
}

/// Returns the position of the value of `PhotometricInterpretation` in the first directory, if its type is 16-bit.
fn interpretation_at(bytes: &[u8]) -> Option<usize> {
    const INTERPRETATION: u64 = 262;
    const SHORT: u64 = 3;
    let little_endian = bytes.starts_with(b"II");
    let number = |at: usize, size: usize| {
        let add = |number: u64, &byte: &u8| number << 8 | u64::from(byte);
        let digits = bytes.get(at..at.checked_add(size)?)?;
        Some(match little_endian {
            true => digits.iter().rev().fold(0, add),
            false => digits.iter().fold(0, add),
        })
    };
    // Sizes of an offset, of the number of entries, and of an entry. Version 43 is BigTIFF.
    let (offset, count, entry) = match number(2, 2)? {
        42 => (4, 2, 12),
        43 => (8, 8, 20),
        _ => return None,
    };
    let directory = usize::try_from(number(offset, offset)?).ok()?;
    let mut entries = (0..number(directory, count)?).map_while(|index| {
        let at =
            directory.checked_add(count)?.checked_add(usize::try_from(index).ok()?.checked_mul(entry)?)?;
        Some((at, number(at, 2)?))
    });
    let (at, _) = entries.find(|(_, tag)| *tag == INTERPRETATION)?;
    // Tag, type and number of values precede the value.
    let value = at + 4 + offset;
    (number(at + 2, 2)? == SHORT && value + 2 <= bytes.len()).then_some(value)
}
