//! Heat maps: drawn cell by cell, or as an image where there are too many cells.

use std::{fmt::Write, io::Cursor};

use base64::{Engine, engine::general_purpose::STANDARD};
use image::{ImageFormat, Rgb, RgbImage};

use super::{Plot, cut, heading, line, text, wide};
use crate::report::html::escape;

/// A cell of a heat map: how dark, from 0 to 1, what is written in it, and its tip.
pub struct Cell {
    /// From 0 to 1.
    pub shade: f64,
    /// Written where there is room.
    pub label: String,
    /// Shown by the pointer.
    pub tip: String,
}

/// Rows of cells, with names beside and above them.
pub fn heat(
    title: &str,
    names: (&[String], &[String]),
    axes: (&str, &str),
    rows: &[Vec<Option<Cell>>],
) -> Plot {
    let (beside, above) = names;
    let size = match above.len() {
        0..=12 => 46.0,
        13..=24 => 32.0,
        _ => 12.0,
    };
    let most = |names: &[String]| names.iter().map(|name| wide(&cut(name, 18))).fold(0.0, f64::max);
    let left = most(beside) + 34.0;
    // Names that are wider than a cell stand upright.
    let upright = most(above) > size - 4.0;
    let top = 58.0 + if upright { most(above) + 4.0 } else { 14.0 };
    let down = match beside.len() {
        ..=24 if size < 20.0 => 20.0,
        _ => size.min(38.0),
    };
    let across = size * above.len() as f64;
    let high = down * beside.len() as f64;
    let mut body =
        heading(title) + &text(left + across / 2.0, 46.0, "middle", " fill=\"var(--quiet)\"", axes.1);
    let middle = top + high / 2.0;
    let turned = format!(" fill=\"var(--quiet)\" transform=\"rotate(-90 14 {middle:.1})\"");
    body += &text(14.0, middle, "middle", &turned, axes.0);
    let small = if size < 20.0 { " font-size=\"10\"" } else { "" };
    for (index, name) in above.iter().enumerate() {
        let (x, y) = (left + (index as f64 + 0.5) * size, top - 8.0);
        body += &match upright {
            true => text(
                x + 4.0,
                y,
                "start",
                &format!("{small} transform=\"rotate(-90 {:.1} {y:.1})\"", x + 4.0),
                &cut(name, 18),
            ),
            false => text(x, y, "middle", small, name),
        };
    }
    for (index, (name, cells)) in beside.iter().zip(rows).enumerate() {
        let y = top + index as f64 * down;
        body += &text(left - 8.0, y + down / 2.0 + 4.0, "end", small, &cut(name, 18));
        for (column, cell) in cells.iter().enumerate() {
            let Some(cell) = cell else { continue };
            let x = left + column as f64 * size;
            let _ = write!(
                body,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{size}\" height=\"{down}\" fill=\"{}\" \
                 stroke=\"var(--page)\"><title>{}</title></rect>",
                shade(cell.shade),
                escape(&cell.tip)
            );
            if size > 20.0 {
                let ink = if cell.shade > 0.5 { "#ffffff" } else { "#10161c" };
                let more = format!(
                    " fill=\"{ink}\" pointer-events=\"none\"{}",
                    if size < 40.0 { " font-size=\"10.5\"" } else { "" }
                );
                body += &text(x + size / 2.0, y + down / 2.0 + 4.0, "middle", &more, &cell.label);
            }
        }
    }
    let width = (left + across + 16.0).max(wide(title) * 1.25 + 24.0);
    // The name of the rows may be longer than they are high together.
    let height = (top + high + 12.0).max(middle + wide(axes.0) / 2.0 + 6.0);
    Plot { title: title.into(), width, height, body }
}

/// Cells of a square heat map that is too large to draw one by one.
pub struct Picture<'a> {
    /// How dark each cell is, from 0 to 1, row by row.
    pub shades: &'a [Vec<f64>],
    /// Places at which a group of rows, and of columns, begins, with its name.
    pub groups: &'a [(usize, String)],
}

/// A heat map as an image with a pixel for each cell, which stretches without blurring; `None` if there is nothing to show.
pub fn picture(title: &str, axes: (&str, &str), Picture { shades, groups }: &Picture<'_>) -> Option<Plot> {
    let count = shades.len();
    let mut image = RgbImage::new(count.try_into().ok()?, count.try_into().ok()?);
    for (x, y, pixel) in image.enumerate_pixels_mut() {
        let shade = shades.get(y as usize).and_then(|row| row.get(x as usize));
        *pixel = Rgb(colour(shade.copied().unwrap_or(0.0)));
    }
    let mut png = Cursor::new(Vec::new());
    image.write_to(&mut png, ImageFormat::Png).ok()?;
    let cell = (600.0 / count as f64).clamp(1.0, 6.0);
    let (left, top, side) = (64.0, 72.0, cell * count as f64);
    let mut body = heading(title);
    body += &text(left + side / 2.0, 46.0, "middle", " fill=\"var(--quiet)\"", axes.1);
    let middle = top + side / 2.0;
    let turned = format!(" fill=\"var(--quiet)\" transform=\"rotate(-90 14 {middle:.1})\"");
    body += &text(14.0, middle, "middle", &turned, axes.0);
    let _ = write!(
        body,
        "<image x=\"{left:.1}\" y=\"{top:.1}\" width=\"{side:.1}\" height=\"{side:.1}\" \
         image-rendering=\"pixelated\" style=\"image-rendering:pixelated\" href=\"data:image/png;base64,{}\"/>",
        STANDARD.encode(png.get_ref())
    );
    let ends = groups.iter().skip(1).map(|(start, _)| *start).chain([count]);
    for ((start, name), end) in groups.iter().zip(ends) {
        let at = cell * *start as f64;
        if *start > 0 {
            body += &line((left + at, top), (left + at, top + side), "rule");
            body += &line((left, top + at), (left + side, top + at), "rule");
        }
        let middle = cell * (start + end) as f64 / 2.0;
        let name = cut(name, 6);
        if wide(&name) < cell * end.saturating_sub(*start) as f64 {
            body += &text(left + middle, top - 7.0, "middle", "", &name);
        }
        body += &text(left - 7.0, top + middle + 4.0, "end", "", &name);
    }
    let width = (left + side + 16.0).max(wide(title) * 1.25 + 24.0);
    Some(Plot { title: title.into(), width, height: top + side + 12.0, body })
}

/// From pale to dark blue.
fn colour(share: f64) -> [u8; 3] {
    let share = share.clamp(0.0, 1.0);
    [(232.0, 8.0), (239.0, 58.0), (247.0, 120.0)]
        .map(|(pale, dark): (f64, f64)| (pale + (dark - pale) * share).round() as u8)
}

fn shade(share: f64) -> String {
    let [r, g, b] = colour(share);
    format!("#{r:02x}{g:02x}{b:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_has_a_pixel_for_each_cell() {
        let shades = vec![vec![0.0, 1.0, 0.5], vec![0.25, 0.0, 1.0], vec![1.0, 0.75, 0.0]];
        let groups = [(0, "1".to_string()), (2, "2".to_string())];
        let plot =
            picture("t", ("a", "b"), &Picture { shades: &shades, groups: &groups }).expect("a picture");
        let (_, data) = plot.body.split_once("base64,").expect("an image");
        let (data, _) = data.split_once('"').expect("its end");
        let png = STANDARD.decode(data).expect("base64");
        let image = image::load_from_memory(&png).expect("PNG").to_rgb8();
        assert_eq!(image.dimensions(), (3, 3));
        for (x, y, pixel) in image.enumerate_pixels() {
            assert_eq!(pixel.0, colour(shades[y as usize][x as usize]));
        }
        assert_eq!(image.get_pixel(1, 0).0, [8, 58, 120]);
        assert!(picture("t", ("a", "b"), &Picture { shades: &[], groups: &[] }).is_none());
    }
}
