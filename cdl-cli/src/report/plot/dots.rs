//! Dot plots.

use maud::html;

use super::{
    elements::{Plot, Series, line, shortened, text, whisker, widest},
    frame::{TOP, WIDTH, legend, short},
};

/// Dot plot with a row for each position and a dot for each series, from 0 to 100 %. Bands are drawn as lines.
pub fn dots(title: &str, places: &[String], series: &[Series]) -> Plot {
    let has_bands = series.iter().any(|one| one.band.iter().any(Option::is_some));
    // Bands would hide each other: with bands, each series has its own height within a row.
    let apart = if has_bands { 4.0 } else { 0.0 };
    let row = if places.len() > 40 { 16.0 } else { 22.0 } + apart * series.len().saturating_sub(3) as f64;
    let shift = |number: usize| apart * (number as f64 - (series.len() as f64 - 1.0) / 2.0);
    let left = widest(places, 18).max(30.0) + 18.0;
    let (right, bottom) = (WIDTH - 20.0, TOP + row * places.len() as f64);
    let x = |value: f64| left + (right - left) * (value / 100.0).clamp(0.0, 1.0);
    let (names, high) = legend(series, bottom + 40.0);
    let body = html! {
        @for value in (0..=5).map(|step| 20.0 * f64::from(step)) {
            (line((x(value), TOP), (x(value), bottom), "rule"))
            (text((x(value), bottom + 17.0), "quiet middle", &short(value)))
        }
        @for (index, place) in places.iter().enumerate() {
            @let y = TOP + (index as f64 + 0.5) * row;
            @let value = |one: &Series| one.values.get(index).copied().flatten().filter(|value| value.is_finite());
            @let band = |one: &Series| one.band.get(index).copied().flatten();
            @let ends = series.iter().filter_map(value).fold((f64::MAX, f64::MIN), |(a, b), v| (a.min(v), b.max(v)));
            (text((left - 9.0, y + 4.0), "end", &shortened(place, 18)))
            @if ends.0 < ends.1 && !has_bands { (line((x(ends.0), y), (x(ends.1), y), "quiet")) }
            @for (number, one) in series.iter().enumerate() {
                @if let Some((low, high)) = band(one) {
                    @let y = y + shift(number);
                    (whisker((x(low), y), (x(high), y), &one.ink(), 2.0, 0.6))
                }
            }
            @for (number, one) in series.iter().enumerate() {
                @if let Some(value) = value(one) {
                    @let spread = band(one).map(|(_, high)| format!(" ± {:.2}", high - value)).unwrap_or_default();
                    (one.marker((x(value), y + shift(number)), &format!("{}, {place}: {value:.2}{spread} %", one.name)))
                }
            }
        }
        (names)
    };
    Plot { title: title.into(), width: WIDTH, height: bottom + 32.0 + high, body }
}
