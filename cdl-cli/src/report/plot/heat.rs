//! Heat maps: drawn cell by cell, or as an image where there are too many cells.

use std::{fmt::Write, io::Cursor};

use base64::{Engine, engine::general_purpose::STANDARD};
use image::{ImageFormat, Rgb, RgbImage};

use super::{Plot, cut, heading, line, text, wide};
use crate::report::html::escape;

/// A cell of a heat map: how dark, what is written in it, and its tip.
pub struct Cell {
    /// From 0 to 1; where values have a sign, from -1 to 1.
    pub shade: f64,
    /// Written where there is room.
    pub label: String,
    /// Shown by the pointer.
    pub tip: String,
}

/// What the shades of a heat map stand for, drawn below it.
pub struct Key {
    /// What is shaded.
    pub what: String,
    /// Names of the least shade and of the darkest.
    pub ends: (String, String),
    /// Shades go from -1 by 0, which is white, to 1, not from 0: below zero cells have another colour, and a stroke that
    /// tells them apart in grey as well.
    pub signed: bool,
}

/// Rows of cells, with names beside and above them, and what their shades stand for.
pub fn heat(
    title: &str,
    names: (&[String], &[String]),
    axes: (&str, &str),
    rows: &[Vec<Option<Cell>>],
    key: Option<&Key>,
) -> Plot {
    let signed = key.is_some_and(|key| key.signed);
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
                shade(cell.shade, signed),
                escape(&cell.tip)
            );
            if size <= 20.0 && cell.shade < 0.0 {
                body += &stroke((x + size / 2.0, y + down / 2.0), cell.shade);
            }
            if size > 20.0 {
                let ink = ink(cell.shade);
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
    match key {
        None => Plot { title: title.into(), width, height, body },
        Some(key) => {
            let (drawn, width) = scale(key, height + 4.0, width);
            Plot { title: title.into(), width, height: height + 52.0, body: body + &drawn }
        }
    }
}

/// The shades in a row with the names of their ends, below `top`; gives back the width of the plot too, of `width` or more.
fn scale(key: &Key, top: f64, width: f64) -> (String, f64) {
    const STEPS: u32 = 20;
    const STEP: f64 = 10.0;
    let (low, high) = (wide(&key.ends.0) + 18.0, wide(&key.ends.1) + 16.0);
    let mut drawn = text(10.0, top + 12.0, "start", " fill=\"var(--quiet)\"", &key.what);
    let y = top + 20.0;
    for step in 0..=STEPS {
        let share = f64::from(step) / f64::from(STEPS);
        let value = if key.signed { 2.0 * share - 1.0 } else { share };
        let x = low + f64::from(step) * STEP;
        let _ = write!(
            drawn,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{STEP}\" height=\"14\" fill=\"{}\"/>",
            shade(value, key.signed)
        );
        // Zero lies in the middle of the middle step.
        if value < -0.01 {
            drawn += &stroke((x + STEP / 2.0, y + 7.0), value);
        } else if key.signed && value < 0.01 {
            drawn += &text(x + STEP / 2.0, y + 26.0, "middle", " font-size=\"10\"", "0");
        }
    }
    let end = low + f64::from(STEPS + 1) * STEP;
    let _ = write!(
        drawn,
        "<rect x=\"{low:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"14\" fill=\"none\" stroke=\"var(--quiet)\"/>",
        end - low
    );
    drawn += &text(low - 6.0, y + 11.0, "end", "", &key.ends.0);
    drawn += &text(end + 6.0, y + 11.0, "start", "", &key.ends.1);
    (drawn, width.max(end + high).max(wide(&key.what) + 20.0))
}

/// What can be read on a shade.
fn ink(shade: f64) -> &'static str {
    if shade.abs() > 0.5 { "#ffffff" } else { "#10161c" }
}

/// The mark of a cell below zero.
fn stroke((x, y): (f64, f64), shade: f64) -> String {
    format!(
        "<line x1=\"{:.1}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\" stroke=\"{}\" stroke-width=\"1.4\" \
         pointer-events=\"none\"/>",
        x - 2.5,
        x + 2.5,
        ink(shade)
    )
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

const PALE: [f64; 3] = [232.0, 239.0, 247.0];
const WHITE: [f64; 3] = [255.0; 3];
const BLUE: [f64; 3] = [8.0, 58.0, 120.0];
/// As dark as the blue.
const BROWN: [f64; 3] = [122.0, 44.0, 4.0];

fn between(from: [f64; 3], to: [f64; 3], share: f64) -> [u8; 3] {
    let share = share.clamp(0.0, 1.0);
    [0, 1, 2].map(|channel| (from[channel] + (to[channel] - from[channel]) * share).round() as u8)
}

/// From pale to dark blue.
fn colour(share: f64) -> [u8; 3] {
    between(PALE, BLUE, share)
}

/// With a sign from dark brown by white to dark blue.
fn shade(value: f64, signed: bool) -> String {
    let [r, g, b] = match signed {
        true => between(WHITE, if value < 0.0 { BROWN } else { BLUE }, value.abs()),
        false => colour(value),
    };
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

    #[test]
    fn signs_are_seen_in_colour_and_in_grey() {
        let cell = |shade: f64| Some(Cell { shade, label: String::new(), tip: "tip".into() });
        let names: Vec<String> = (0..30).map(|number| number.to_string()).collect();
        let row: Vec<Option<Cell>> = (0..30).map(|number| cell(f64::from(number) / 15.0 - 1.0)).collect();
        let key = Key { what: "weight".into(), ends: ("-0.5".into(), "0.5".into()), signed: true };
        let below = &names[..1];
        let plot = heat("t", (below, &names), ("a", "b"), &[row], Some(&key));
        let (cells, scale) = plot.body.split_once(">weight<").expect("what is shaded is said");
        // 15 of 30 are below zero, and 10 of 21 on the scale.
        assert_eq!(cells.matches("stroke-width=\"1.4\"").count(), 15);
        assert_eq!(scale.matches("stroke-width=\"1.4\"").count(), 10);
        for text in ["#7a2c04", "#ffffff", "#083a78", ">-0.5<", ">0.5<", ">0<"] {
            assert!(scale.contains(text), "{text} in {scale}");
        }
        let light = |value: f64| {
            let colour = shade(value, true);
            let channel = |at: usize| f64::from(u8::from_str_radix(&colour[at..at + 2], 16).expect("hex"));
            0.299 * channel(1) + 0.587 * channel(3) + 0.114 * channel(5)
        };
        assert!((light(-1.0) - light(1.0)).abs() < 20.0, "{} {}", light(-1.0), light(1.0));
        assert!(light(0.0) > 254.0 && light(-0.5) > light(-0.9) && light(0.5) > light(0.9));
        let plain = heat("t", (below, &names), ("a", "b"), &[], None);
        assert!(plain.height + 40.0 < plot.height);
    }
}
