//! The accuracy matrix as a picture: a row for each task learned, a column for each task tested, in each cell the accuracy
//! in whole percent.

use std::io::Cursor;

use cdl_core::{
    Error, Result,
    image::{ImageFormat, Rgb, RgbImage},
};

use super::event::Image;

/// Side of a cell in pixels, with a rule of one.
const CELL: u32 = 24;
/// Pixels of a digit are squares of this side.
const DOT: u32 = 2;
/// Digits are three dots wide and five high; each row is three bits.
const DIGITS: [[u8; 5]; 10] = [
    [0b111, 0b101, 0b101, 0b101, 0b111],
    [0b010, 0b110, 0b010, 0b010, 0b111],
    [0b111, 0b001, 0b111, 0b100, 0b111],
    [0b111, 0b001, 0b111, 0b001, 0b111],
    [0b101, 0b101, 0b111, 0b001, 0b001],
    [0b111, 0b100, 0b111, 0b001, 0b111],
    [0b111, 0b100, 0b111, 0b101, 0b111],
    [0b111, 0b001, 0b001, 0b010, 0b010],
    [0b111, 0b101, 0b111, 0b101, 0b111],
    [0b111, 0b101, 0b111, 0b001, 0b111],
];
const PAGE: Rgb<u8> = Rgb([255; 3]);
const INK: Rgb<u8> = Rgb([29, 35, 41]);
/// Of 100 %.
const FULL: [u8; 3] = [0, 114, 178];

/// Draws rows of accuracies in percent, row `i` with `i + 1` of them.
///
/// # Errors
/// More tasks than a picture has room for.
pub fn png(rows: &[Vec<f64>]) -> Result<Image> {
    let side = u32::try_from(rows.len()).unwrap_or(u32::MAX).saturating_mul(CELL).saturating_add(1);
    if side > u32::from(u16::MAX) {
        return Err(Error::Tasks(format!("{} tasks are too many for a picture of their matrix", rows.len())));
    }
    let mut picture = RgbImage::from_pixel(side, side, PAGE);
    for (i, row) in rows.iter().enumerate() {
        for (j, accuracy) in row.iter().enumerate() {
            cell(&mut picture, (j as u32 * CELL + 1, i as u32 * CELL + 1), *accuracy);
        }
    }
    let mut png = Cursor::new(Vec::new());
    picture
        .write_to(&mut png, ImageFormat::Png)
        .map_err(|e| Error::Tasks(format!("the accuracy matrix cannot be drawn: {e}")))?;
    Ok(Image { width: side, height: side, png: png.into_inner() })
}

fn cell(picture: &mut RgbImage, (left, top): (u32, u32), accuracy: f64) {
    let share = (accuracy / 100.0).clamp(0.0, 1.0);
    let shade = FULL.map(|full| (255.0 + (f64::from(full) - 255.0) * share).round() as u8);
    for (x, y) in (0..CELL - 1).flat_map(|x| (0..CELL - 1).map(move |y| (x, y))) {
        picture.put_pixel(left + x, top + y, Rgb(shade));
    }
    let ink = if share > 0.55 { PAGE } else { INK };
    let text = format!("{:.0}", 100.0 * share);
    // A digit and a gap take four dots; the last gap is not there.
    let wide = |digits: usize| (4 * digits as u32 - 1) * DOT;
    let start = left + (CELL - 1).saturating_sub(wide(text.len())) / 2;
    let top = top + (CELL - 1 - 5 * DOT) / 2;
    for (place, digit) in text.bytes().map(|byte| byte.wrapping_sub(b'0')).enumerate() {
        let Some(rows) = DIGITS.get(usize::from(digit)) else { continue };
        for (x, y) in (0..3 * DOT).flat_map(|x| (0..5 * DOT).map(move |y| (x, y))) {
            if rows[(y / DOT) as usize] >> (2 - x / DOT) & 1 == 1 {
                picture.put_pixel(start + place as u32 * 4 * DOT + x, top + y, ink);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_lie_below_the_diagonal_and_are_shaded_by_accuracy() {
        let image = png(&[vec![100.0], vec![50.0, 0.0]]).expect("picture");
        let picture = cdl_core::transform::decode(&image.png).expect("PNG");
        assert_eq!(picture.dimensions(), (image.width, image.height));
        assert_eq!(image.width, 2 * CELL + 1);
        let corner = |column: u32, row: u32| picture.get_pixel(column * CELL + 1, row * CELL + 1).0;
        assert_eq!(corner(0, 0), FULL);
        assert_eq!(corner(1, 0), PAGE.0, "not tested yet");
        assert_eq!(corner(0, 1), [128, 185, 217]);
        assert_eq!(corner(1, 1), [255; 3], "white, with a zero in it");
        let inked = |column: u32, row: u32, ink: Rgb<u8>| {
            let pixels = picture.enumerate_pixels();
            pixels.filter(|(x, y, p)| x / CELL == column && y / CELL == row && **p == ink).count() as u32
        };
        // A zero has twelve dots, a five eleven.
        assert_eq!(inked(1, 1, INK), 12 * DOT * DOT);
        assert_eq!(inked(0, 1, INK), 23 * DOT * DOT);
    }
}
