//! Lines with what they are uncertain by.

use std::fmt::Write;

use super::{Axes, LEFT, Plot, Scale, Series, TALL, TOP, frame, lines};

/// Lines over places, each above a band from the lower to the upper value at each place.
pub fn banded(
    title: &str,
    axes: &Axes<'_>,
    series: &[Series],
    bands: &[Vec<Option<(f64, f64)>>],
    width: f64,
) -> Plot {
    let scale = Scale::of(series, axes.percent);
    let (plain, slot) = frame(title, axes, series, &scale, width);
    let mut below = String::new();
    for (one, band) in series.iter().zip(bands) {
        let ends: Vec<(f64, f64, f64)> = (band.iter().enumerate())
            .filter_map(|(index, ends)| {
                let (low, high) = ends.filter(|(low, high)| low.is_finite() && high.is_finite())?;
                Some((LEFT + (index as f64 + 0.5) * slot, low, high))
            })
            .collect();
        let y = |value: f64| TOP + TALL * (1.0 - scale.at(value));
        let upper = ends.iter().map(|(x, _, high)| format!("{x:.1},{:.1}", y(*high)));
        let lower = ends.iter().rev().map(|(x, low, _)| format!("{x:.1},{:.1}", y(*low)));
        let outline: Vec<String> = upper.chain(lower).collect();
        let _ = write!(
            below,
            "<polygon points=\"{}\" fill=\"{}\" fill-opacity=\"0.14\"/>",
            outline.join(" "),
            one.ink()
        );
    }
    // Bands stand after the frame and before the lines.
    let mut plot = lines(title, axes, series, width);
    plot.body.insert_str(plain.body.len(), &below);
    plot
}
