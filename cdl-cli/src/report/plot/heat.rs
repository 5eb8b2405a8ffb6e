//! Heat maps, drawn cell by cell or, for many cells, as an image.

use std::io::Cursor;

use base64::{Engine, engine::general_purpose::STANDARD};
use image::{ImageFormat, Rgb, RgbImage};
use maud::{Markup, html};

use super::elements::{Plot, line, px, shortened, text, text_width, upright, widest};

/// Cell of a heat map.
pub struct Cell {
    /// Shade from 0 to 1, or from -1 to 1 for signed values.
    pub shade: f64,
    /// Text in the cell, if there is room.
    pub label: String,
    /// Tooltip.
    pub tip: String,
}

/// Legend of the shades, drawn below a heat map.
pub struct Key {
    /// Name of the shaded quantity.
    pub what: &'static str,
    /// Labels of the lowest and of the highest shade.
    pub ends: (String, String),
    /// True if shades go from -1 to 1. Zero is white; negative cells have another colour and a minus sign, which is
    /// visible in greyscale, too.
    pub signed: bool,
}

/// Names of the vertical and horizontal axis, beside and above a heat map.
fn axis_names((vertical, horizontal): (&str, &str), across: f64, down: f64) -> Markup {
    html! {
        (text((across, 46.0), "quiet middle", horizontal))
        (upright((14.0, down), "quiet middle", vertical))
    }
}

/// Heat map of `rows`, with names beside and above the cells. `cell` makes a cell from row, column and value; `axes`
/// are the names of the vertical and the horizontal axis.
pub fn heat<V>(
    title: &str,
    (beside, above): (&[String], &[String]),
    axes: (&str, &str),
    rows: &[Vec<V>],
    cell: impl Fn(usize, usize, &V) -> Cell,
    key: Option<&Key>,
) -> Plot {
    let signed = key.is_some_and(|key| key.signed);
    let size = match above.len() {
        0..=12 => 46.0,
        13..=24 => 32.0,
        _ => 12.0,
    };
    let (labelled, small) = (size > 20.0, if size < 20.0 { "small" } else { "" });
    let left = widest(beside, 18) + 34.0;
    let longest = widest(above, 18);
    let turned = longest > size - 4.0;
    let top = 58.0 + if turned { longest + 4.0 } else { 14.0 };
    let down = if beside.len() <= 24 && !labelled { 20.0 } else { size.min(38.0) };
    let (across, high) = (size * above.len() as f64, down * beside.len() as f64);
    let middle = top + high / 2.0;
    let width = (left + across + 16.0).max(text_width(title) * 1.25 + 24.0);
    // The name of the vertical axis may be longer than the rows are high.
    let height = (top + high + 12.0).max(middle + text_width(axes.0) / 2.0 + 6.0);
    let (scale, needed, more) = key.map(|key| scale(key, height + 4.0)).unwrap_or_default();
    let body = html! {
        (axis_names(axes, left + across / 2.0, middle))
        @for (index, name) in above.iter().enumerate() {
            @let (x, name) = (left + (index as f64 + 0.5) * size, shortened(name, 18));
            @if turned { (upright((x + 4.0, top - 8.0), small, &name)) } @else { (text((x, top - 8.0), "middle", &name)) }
        }
        @for (index, (name, values)) in beside.iter().zip(rows).enumerate() {
            @let y = top + index as f64 * down;
            (text((left - 8.0, y + down / 2.0 + 4.0), &format!("end {small}"), &shortened(name, 18)))
            @for (column, value) in values.iter().enumerate() {
                @let Cell { shade, label, tip } = cell(index, column, value);
                @let x = left + column as f64 * size;
                g {
                    title { (tip) }
                    rect x=(px(x)) y=(px(y)) width=(size) height=(down) fill=(colour(shade, signed)) stroke="var(--page)" {}
                    @if labelled {
                        text x=(px(x + size / 2.0)) y=(px(y + down / 2.0 + 4.0)) class="middle" fill=(ink(shade))
                            font-size=[(size < 40.0).then_some("10.5")] { (label) }
                    } @else if shade < 0.0 { (minus((x + size / 2.0, y + down / 2.0), shade)) }
                }
            }
        }
        (scale)
    };
    Plot { title: title.into(), width: width.max(needed), height: height + more, body }
}

/// Scale of shades with labels at its ends, below `top`. Returns it with its width and height.
fn scale(key: &Key, top: f64) -> (Markup, f64, f64) {
    const STEP: f64 = 10.0;
    let (low, high) = (text_width(&key.ends.0) + 18.0, text_width(&key.ends.1) + 16.0);
    let (y, end) = (top + 20.0, low + 21.0 * STEP);
    let drawn = html! {
        (text((10.0, top + 12.0), "quiet", key.what))
        @for step in 0..=20 {
            // Zero is in the centre of the middle step.
            @let shade = if key.signed { f64::from(step - 10) / 10.0 } else { f64::from(step) / 20.0 };
            @let x = low + f64::from(step) * STEP;
            rect x=(px(x)) y=(px(y)) width=(STEP) height="14" fill=(colour(shade, key.signed)) {}
            @if shade < 0.0 {
                (minus((x + STEP / 2.0, y + 7.0), shade))
            } @else if key.signed && step == 10 {
                (text((x + STEP / 2.0, y + 26.0), "middle small", "0"))
            }
        }
        rect x=(px(low)) y=(px(y)) width=(px(end - low)) height="14" fill="none" stroke="var(--quiet)" {}
        (text((low - 6.0, y + 11.0), "end", &key.ends.0))
        (text((end + 6.0, y + 11.0), "", &key.ends.1))
    };
    (drawn, (end + high).max(text_width(key.what) + 20.0), 52.0)
}

/// Text colour with sufficient contrast on a shade.
fn ink(shade: f64) -> &'static str {
    if shade.abs() > 0.5 { "#ffffff" } else { "#10161c" }
}

/// Minus sign in a negative cell.
fn minus((x, y): (f64, f64), shade: f64) -> Markup {
    html! { line x1=(px(x - 2.5)) y1=(px(y)) x2=(px(x + 2.5)) y2=(px(y)) stroke=(ink(shade)) stroke-width="1.4" {} }
}

/// Square heat map as an image with a pixel for each cell, scaled without blurring; `None` if it cannot be encoded.
/// `shades` go from 0 to 1, and missing cells are white. `groups` are the positions at which a group of rows and
/// columns begins, with its name.
pub fn picture(
    title: &str,
    axes: (&str, &str),
    shades: &[Vec<f64>],
    groups: &[(usize, String)],
) -> Option<Plot> {
    let count = shades.len();
    let mut image = RgbImage::new(count.try_into().ok()?, count.try_into().ok()?);
    for (x, y, pixel) in image.enumerate_pixels_mut() {
        let shade = shades.get(y as usize).and_then(|row| row.get(x as usize));
        *pixel = Rgb(shade.map_or([255; 3], |shade| rgb(*shade, false)));
    }
    let mut png = Cursor::new(Vec::new());
    image.write_to(&mut png, ImageFormat::Png).ok()?;
    let cell = (600.0 / count as f64).clamp(1.0, 6.0);
    let (left, top, side) = (64.0, 72.0, cell * count as f64);
    let ends = groups.iter().skip(1).map(|(start, _)| *start).chain([count]);
    let body = html! {
        (axis_names(axes, left + side / 2.0, top + side / 2.0))
        image x=(px(left)) y=(px(top)) width=(px(side)) height=(px(side)) image-rendering="pixelated"
            style="image-rendering:pixelated" href={ "data:image/png;base64," (STANDARD.encode(png.get_ref())) } {}
        @for ((start, name), end) in groups.iter().zip(ends) {
            @let (at, middle) = (cell * *start as f64, cell * (start + end) as f64 / 2.0);
            @if *start > 0 {
                (line((left + at, top), (left + at, top + side), "rule"))
                (line((left, top + at), (left + side, top + at), "rule"))
            }
            @let name = shortened(name, 6);
            @if text_width(&name) < cell * end.saturating_sub(*start) as f64 {
                (text((left + middle, top - 7.0), "middle", &name))
            }
            (text((left - 7.0, top + middle + 4.0), "end", &name))
        }
    };
    let width = (left + side + 16.0).max(text_width(title) * 1.25 + 24.0);
    Some(Plot { title: title.into(), width, height: top + side + 12.0, body })
}

/// Colour of a shade: pale to dark blue, or for signed values dark brown through white to dark blue. Brown is as dark
/// as blue.
fn rgb(shade: f64, signed: bool) -> [u8; 3] {
    const BLUE: [f64; 3] = [8.0, 58.0, 120.0];
    let (from, to) = match signed {
        true if shade < 0.0 => ([255.0; 3], [122.0, 44.0, 4.0]),
        true => ([255.0; 3], BLUE),
        false => ([232.0, 239.0, 247.0], BLUE),
    };
    let share = if signed { shade.abs() } else { shade }.clamp(0.0, 1.0);
    [0, 1, 2].map(|channel| (from[channel] + (to[channel] - from[channel]) * share).round() as u8)
}

fn colour(shade: f64, signed: bool) -> String {
    let [r, g, b] = rgb(shade, signed);
    format!("#{r:02x}{g:02x}{b:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negative_values_are_visible_in_colour_and_greyscale() {
        let cell =
            |_: usize, _: usize, shade: &f64| Cell { shade: *shade, label: String::new(), tip: "tip".into() };
        let names: Vec<String> = (0..30).map(|number| number.to_string()).collect();
        let row: Vec<f64> = (0..30).map(|number| f64::from(number) / 15.0 - 1.0).collect();
        let key = Key { what: "weight", ends: ("-0.5".into(), "0.5".into()), signed: true };
        let below = &names[..1];
        let plot = heat("t", (below, &names), ("a", "b"), &[row], cell, Some(&key));
        let (cells, scale) = plot.body.0.split_once(">weight<").expect("a scale with its quantity");
        // 15 of 30 cells are negative, and 10 of 21 steps of the scale.
        assert_eq!(cells.matches("stroke-width=\"1.4\"").count(), 15);
        assert_eq!(scale.matches("stroke-width=\"1.4\"").count(), 10);
        for text in ["#7a2c04", "#ffffff", "#083a78", ">-0.5<", ">0.5<", ">0<"] {
            assert!(scale.contains(text), "{text} in {scale}");
        }
        let light = |value: f64| {
            let [r, g, b] = rgb(value, true).map(f64::from);
            0.299 * r + 0.587 * g + 0.114 * b
        };
        assert!((light(-1.0) - light(1.0)).abs() < 20.0, "{} {}", light(-1.0), light(1.0));
        assert!(light(0.0) > 254.0 && light(-0.5) > light(-0.9) && light(0.5) > light(0.9));
        let plain = heat("t", (below, &names), ("a", "b"), &[], cell, None);
        assert!(plain.height + 40.0 < plot.height);
    }
}
