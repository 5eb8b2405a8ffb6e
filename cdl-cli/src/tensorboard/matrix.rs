//! The accuracy matrix as a picture: a row for each task learned, a column for each task tested, in each cell the accuracy
//! in whole percent.

use std::io::Cursor;

use cdl_core::{
    Error, Result,
    image::{ImageFormat, Rgb, RgbImage},
};

use super::event::Image;

/// Side of a cell in pixels, with a rule of one, where there is room for all.
const CELL: u32 = 24;
/// Cells that are smaller have no digits.
const LEGIBLE: u32 = 13;
/// Cells that are smaller have no rules.
const RULED: u32 = 4;
/// Side of the largest picture: one is written after every task.
const SIDE: u32 = 1024;
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

/// Draws rows of accuracies in percent, row `i` with `i + 1` of them. With the tasks the cells shrink, down to a pixel; of
/// still more tasks a pixel is the mean of several.
///
/// # Errors
/// A picture that cannot be encoded.
pub fn png(rows: &[Vec<f64>]) -> Result<Image> {
    let together = rows.len().div_ceil(SIDE as usize).max(1);
    let rows = means(rows, together);
    let count = rows.len() as u32;
    let size = ((SIDE - 1) / count.max(1)).clamp(1, CELL);
    let rule = u32::from(size >= RULED);
    let side = (count * size + rule).max(1);
    let mut picture = RgbImage::from_pixel(side, side, PAGE);
    for (i, row) in rows.iter().enumerate() {
        for (j, accuracy) in row.iter().enumerate() {
            let corner = (j as u32 * size + rule, i as u32 * size + rule);
            cell(&mut picture, corner, size - rule, *accuracy);
        }
    }
    let mut png = Cursor::new(Vec::new());
    picture
        .write_to(&mut png, ImageFormat::Png)
        .map_err(|e| Error::Tasks(format!("the accuracy matrix cannot be drawn: {e}")))?;
    Ok(Image { width: side, height: side, png: png.into_inner() })
}

/// Means over squares of `side` cells, as far as there are cells in them.
fn means(rows: &[Vec<f64>], side: usize) -> Vec<Vec<f64>> {
    let mean = |rows: &[Vec<f64>], column: usize| {
        let cells = rows.iter().flat_map(|row| row.iter().skip(column * side).take(side));
        let (count, sum) = cells.fold((0usize, 0.0), |(count, sum), value| (count + 1, sum + value));
        (count > 0).then(|| sum / count as f64)
    };
    rows.chunks(side).map(|rows| (0..).map_while(|column| mean(rows, column)).collect()).collect()
}

/// A square of `side` pixels in its shade, with a number where there is room.
fn cell(picture: &mut RgbImage, (left, top): (u32, u32), side: u32, accuracy: f64) {
    let share = (accuracy / 100.0).clamp(0.0, 1.0);
    let shade = FULL.map(|full| (255.0 + (f64::from(full) - 255.0) * share).round() as u8);
    for (x, y) in (0..side).flat_map(|x| (0..side).map(move |y| (x, y))) {
        picture.put_pixel(left + x, top + y, Rgb(shade));
    }
    if side + 1 < LEGIBLE {
        return;
    }
    // Pixels of a digit are squares.
    let dot = if side + 1 < CELL { 1 } else { 2 };
    let ink = if share > 0.55 { PAGE } else { INK };
    let text = format!("{:.0}", 100.0 * share);
    // A digit and a gap take four dots; the last gap is not there.
    let wide = |digits: usize| (4 * digits as u32 - 1) * dot;
    let start = left + side.saturating_sub(wide(text.len())) / 2;
    let top = top + (side - 5 * dot) / 2;
    for (place, digit) in text.bytes().map(|byte| byte.wrapping_sub(b'0')).enumerate() {
        let Some(rows) = DIGITS.get(usize::from(digit)) else { continue };
        for (x, y) in (0..3 * dot).flat_map(|x| (0..5 * dot).map(move |y| (x, y))) {
            if rows[(y / dot) as usize] >> (2 - x / dot) & 1 == 1 {
                picture.put_pixel(start + place as u32 * 4 * dot + x, top + y, ink);
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
        assert_eq!(inked(1, 1, INK), 12 * 4);
        assert_eq!(inked(0, 1, INK), 23 * 4);
    }

    /// Accuracies that no two neighbours share, so that nothing compresses well.
    fn wild(tasks: usize) -> Vec<Vec<f64>> {
        (0..tasks).map(|i| (0..=i).map(|j| ((i * 7919 + j * 104_729) % 101) as f64).collect()).collect()
    }

    #[test]
    fn a_picture_stays_small_however_many_tasks_there_are() {
        for (tasks, side) in
            [(42, 1009), (43, 1 + 23 * 43), (78, 1 + 13 * 78), (79, 949), (100, 1001), (1000, 1000)]
        {
            let image = png(&wild(tasks)).expect("picture");
            let picture = cdl_core::transform::decode(&image.png).expect("PNG");
            assert_eq!((image.width, picture.dimensions()), (side, (side, side)), "{tasks} tasks");
        }
        let bytes = png(&wild(100)).expect("picture").png.len();
        assert!(bytes < 100_000, "{bytes} bytes");
        let many = png(&wild(2100)).expect("picture");
        assert!(many.width <= SIDE && many.png.len() < 2_000_000, "{} px", many.width);
    }

    #[test]
    fn of_too_many_tasks_a_pixel_is_the_mean_of_those_that_are_there() {
        let rows = vec![vec![10.0], vec![20.0, 30.0], vec![40.0, 60.0, 5.0]];
        assert_eq!(means(&rows, 1), rows);
        assert_eq!(means(&rows, 2), [vec![20.0], vec![50.0, 5.0]]);
        assert!(png(&[]).is_ok());
    }
}
