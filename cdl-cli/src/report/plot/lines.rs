//! Line and bar plots.

use maud::{Markup, html};

use super::{
    elements::{Plot, Series, points, px, whisker},
    frame::{Axes, Frame, LEFT, Point, RIGHT},
};

/// Least distance between the points of a line with markers, in pixels. Closer markers would hide the line.
const APART: f64 = 9.0;

/// Line plot, with the bands below the lines. A line is drawn for each group of places.
pub fn lines(title: &str, axes: &Axes, series: &[Series]) -> Plot {
    let frame = Frame::new(axes, series);
    let drawn: Vec<(&Series, Vec<Point>)> = series.iter().map(|one| (one, frame.points(one))).collect();
    let shapes = html! {
        @for (one, points) in &drawn {
            @for group in points.chunk_by(|a, b| a.group == b.group) { (band(one, group)) }
        }
        @for (one, all) in &drawn {
            @let is_sparse = (RIGHT - LEFT) / all.len().max(1) as f64 > APART;
            @for group in all.chunk_by(|a, b| a.group == b.group) {
                @if group.len() > 1 {
                    polyline points=(points(group.iter().map(|point| point.at))) fill="none" stroke=(one.ink())
                        stroke-width="2" stroke-linejoin="round" stroke-dasharray=[one.dashes()] {}
                }
                @if is_sparse || group.len() == 1 { @for point in group { (one.marker(point.at, &point.tip)) } }
            }
        }
    };
    frame.around(title, series, &shapes)
}

/// Band of a line. A band of one place is a vertical line.
fn band(series: &Series, group: &[Point]) -> Markup {
    let ends: Vec<(f64, (f64, f64))> =
        group.iter().filter_map(|point| Some((point.at.0, point.band?))).collect();
    let upper = ends.iter().map(|(x, (_, high))| (*x, *high));
    let outline = points(upper.chain(ends.iter().rev().map(|(x, (low, _))| (*x, *low))));
    html! {
        @match &ends[..] {
            [] => {}
            [(x, (low, high))] => (whisker((*x, *low), (*x, *high), &series.ink(), 5.0, 0.4)),
            _ => polygon points=(outline) fill=(series.ink()) fill-opacity="0.14" {}
        }
    }
}

/// Bar plot with a group of bars for each position. Bands are drawn as lines on the bars.
pub fn bars(title: &str, axes: &Axes, series: &[Series]) -> Plot {
    let frame = Frame::new(axes, series);
    let slot = (RIGHT - LEFT) / axes.places.len().max(1) as f64;
    let thick = (0.8 * slot / series.len().max(1) as f64).min(34.0);
    let zero = frame.y(0.0);
    let shapes = html! {
        @for (number, one) in series.iter().enumerate() {
            @let from_middle = (number as f64 - series.len() as f64 / 2.0) * thick;
            @for Point { at: (middle, y), band, tip, .. } in frame.points(one) {
                rect x=(px(middle + from_middle + 0.5)) y=(px(y.min(zero)))
                    width=(px((thick - 1.5).max(1.0))) height=(px((y - zero).abs().max(0.5)))
                    fill=(one.fill()) stroke=(one.ink()) stroke-width="1.2" { title { (tip) } }
                @if let Some((low, high)) = band {
                    @let x = middle + from_middle + thick / 2.0;
                    (whisker((x, low), (x, high), "var(--ink)", 1.0, 1.0))
                }
            }
        }
    };
    frame.around(title, series, &shapes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::plot::frame::Place;

    fn series(values: Vec<Option<f64>>, band: Vec<Option<(f64, f64)>>) -> Series {
        Series { name: "a & b\u{1}".into(), colour: 9, dashed: true, values, band }
    }

    #[test]
    fn empty_and_infinite_values_give_valid_plots() {
        let extreme = vec![Some(f64::INFINITY), Some(-1e300)];
        let endless = vec![Some((f64::NEG_INFINITY, 1.0)), Some((f64::NAN, 0.0))];
        for values in [vec![], vec![None], vec![Some(f64::NAN)], extreme, vec![Some(0.0), Some(1.0)]] {
            let axes = Axes::of_names("x", false, vec!["<1>".into(); 2]);
            for series in [[series(values.clone(), vec![None; 2])], [series(values, endless.clone())]] {
                for plot in [lines("t", &axes, &series), bars("t", &axes, &series)] {
                    let svg = plot.standalone();
                    for wrong in ["var(--", "<1>", "a & b", "\u{1}", "NaN"] {
                        assert!(!svg.contains(wrong), "{wrong:?} in {svg}");
                    }
                }
            }
        }
    }

    #[test]
    fn lines_and_bands_end_with_their_group() {
        let place = |at: f64, group| Place { at, name: "p".into(), group };
        let axes = Axes {
            x: "step".into(),
            percent: false,
            places: vec![place(0.1, 0), place(0.2, 0), place(0.5, 1), place(0.9, 1), place(1.0, 2)],
            ticks: Vec::new(),
            groups: Vec::new(),
        };
        let values = vec![Some(1.0), Some(2.0), Some(3.0), None, Some(4.0)];
        let band = vec![Some((0.5, 1.5)); 5];
        let body = lines("t", &axes, &[series(values, band)]).body.0;
        let count = |shape: &str| body.matches(shape).count();
        // Only the first group has two points; the bands of the others are vertical lines.
        assert_eq!((count("<polyline"), count("fill-opacity"), count("stroke-opacity")), (1, 1, 2));
        // Without a line, the marker of a point is drawn however close others are.
        let places = (0..200).map(|group| place(group as f64 / 200.0, group)).collect();
        let axes = Axes { places, ..axes };
        let body = lines("t", &axes, &[series(vec![Some(1.0); 200], vec![None; 200])]).body.0;
        assert_eq!(body.matches("<title>").count(), 200);
    }
}
