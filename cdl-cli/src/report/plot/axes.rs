//! Line, bar and dot plots of series over named positions.

use maud::{Markup, html};

use super::elements::{Plot, Series, line, points, px, shortened, text, text_width, widest};

/// Labels and groups of the axes.
pub struct Axes<'a> {
    /// Name of the horizontal axis.
    pub x: &'a str,
    /// True if values are percent, from 0 to 100.
    pub percent: bool,
    /// Name of each position on the horizontal axis.
    pub places: Vec<String>,
    /// Positions at which a new group begins, with its name.
    pub groups: Vec<(usize, String)>,
}

const LEFT: f64 = 50.0;
const TOP: f64 = 42.0;
const TALL: f64 = 220.0;

/// Round distance between ticks, for about five ticks in `span`.
fn tick(span: f64) -> f64 {
    let raw = (span / 4.0).max(f64::MIN_POSITIVE);
    let power = 10f64.powf(raw.log10().floor());
    let round = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().find(|round| round * power >= raw * 0.999);
    round.unwrap_or(10.0) * power
}

/// Label of a tick, without trailing zeros.
fn short(value: f64) -> String {
    let text = if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.3}") };
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').into(),
        false => text,
    }
}

/// Draws the legend in rows up to `width` wide. Returns it with its height.
fn legend(series: &[Series], top: f64, width: f64) -> (Markup, f64) {
    let (mut x, mut y) = (10.0, top);
    let mut place = |name: &str| {
        let taken = 38.0 + text_width(name) + 16.0;
        if x > 10.0 && x + taken > width {
            (x, y) = (10.0, y + 20.0);
        }
        x += taken;
        (x - taken, y)
    };
    let drawn = html! {
        @for one in series {
            @let name = shortened(&one.name, 44);
            @let (x, y) = place(&name);
            line x1=(px(x)) y1=(px(y)) x2=(px(x + 28.0)) y2=(px(y)) stroke=(one.ink()) stroke-width="2"
                stroke-dasharray=[one.dashes()] {}
            (one.marker((x + 14.0, y), &one.name))
            (text((x + 35.0, y + 4.0), "", &name))
        }
    };
    (drawn, y + 20.0 - top)
}

/// Axes, ticks, labels and legend around the series.
struct Frame<'a> {
    axes: &'a Axes<'a>,
    /// Lower and upper end of the vertical axis, and distance between its ticks.
    low: f64,
    high: f64,
    step: f64,
    width: f64,
    /// Width of a position.
    slot: f64,
}

impl<'a> Frame<'a> {
    fn new(axes: &'a Axes<'a>, series: &[Series], width: f64) -> Self {
        let slot = (width - 14.0 - LEFT) / axes.places.len().max(1) as f64;
        if axes.percent {
            return Self { axes, low: 0.0, high: 100.0, step: 20.0, width, slot };
        }
        // The axis includes zero and the largest value.
        let values =
            series.iter().flat_map(|one| one.values.iter().flatten()).filter(|value| value.is_finite());
        let (low, high) = values.fold((0f64, 0f64), |(low, high), &value| (low.min(value), high.max(value)));
        let high = if high > low { high } else { low + 1.0 };
        let step = tick(high - low);
        Self { axes, low: (low / step).floor() * step, high: (high / step).ceil() * step, step, width, slot }
    }

    fn y(&self, value: f64) -> f64 {
        let share = (value - self.low) / (self.high - self.low);
        TOP + TALL * (1.0 - share.clamp(0.0, 1.0))
    }

    fn middle(&self, place: usize) -> f64 {
        LEFT + (place as f64 + 0.5) * self.slot
    }

    /// Coordinates and tooltips of the finite values.
    fn points(&self, series: &Series) -> Vec<((f64, f64), String)> {
        let values = series.values.iter().zip(&self.axes.places).enumerate();
        let point = |(index, (value, place)): (usize, (&Option<f64>, &String))| {
            let value = value.filter(|value| value.is_finite())?;
            let tip = format!("{}, {place}: {}", series.name, short(value));
            Some(((self.middle(index), self.y(value)), tip))
        };
        values.filter_map(point).collect()
    }

    fn band(&self, series: &Series) -> Markup {
        let ends: Vec<(f64, f64, f64)> = (series.band.iter().enumerate())
            .filter_map(|(index, ends)| {
                let (low, high) = ends.filter(|(low, high)| low.is_finite() && high.is_finite())?;
                Some((self.middle(index), self.y(low), self.y(high)))
            })
            .collect();
        let upper = ends.iter().map(|(x, _, high)| (*x, *high));
        let outline = points(upper.chain(ends.iter().rev().map(|(x, low, _)| (*x, *low))));
        html! { @if !ends.is_empty() { polygon points=(outline) fill=(series.ink()) fill-opacity="0.14" {} } }
    }

    /// Plot with the given `shapes` of its series.
    fn around(&self, title: &str, series: &[Series], shapes: &Markup) -> Plot {
        let Self { axes, low, high, step, width, slot } = self;
        let ticks = ((high - low) / step).round().clamp(1.0, 20.0) as usize;
        let (right, bottom) = (width - 14.0, TOP + TALL);
        let every = ((widest(&axes.places, 14) + 8.0) / slot).ceil().max(1.0) as usize;
        let (names, more) = match series.len() {
            1 => (Markup::default(), 0.0),
            _ => legend(series, bottom + 56.0, *width),
        };
        let body = html! {
            @for value in (0..=ticks).map(|index| low + index as f64 * step) {
                @let y = self.y(value);
                (line((LEFT, y), (right, y), if value == 0.0 { "quiet" } else { "rule" }))
                (text((LEFT - 7.0, y + 4.0), "quiet end", &short(value)))
            }
            @for (index, place) in axes.places.iter().enumerate().step_by(every) {
                (text((self.middle(index), bottom + 17.0), "quiet middle", &shortened(place, 14)))
            }
            @for (index, name) in &axes.groups {
                @let x = LEFT + *index as f64 * slot;
                (line((x, TOP), (x, bottom), "rule"))
                (text((x + 4.0, TOP + 10.0), "quiet small", name))
            }
            (text(((LEFT + right) / 2.0, bottom + 35.0), "quiet middle", axes.x))
            (names) (shapes)
        };
        Plot { title: title.into(), width: *width, height: bottom + 52.0 + more, body }
    }
}

/// Line plot, with the bands below the lines.
pub fn lines(title: &str, axes: &Axes<'_>, series: &[Series], width: f64) -> Plot {
    let frame = Frame::new(axes, series, width);
    let shapes = html! {
        @for one in series { (frame.band(one)) }
        @for one in series {
            @let line = frame.points(one);
            @if line.len() > 1 {
                polyline points=(points(line.iter().map(|(at, _)| *at))) fill="none" stroke=(one.ink())
                    stroke-width="2" stroke-linejoin="round" stroke-dasharray=[one.dashes()] {}
            }
            // Markers would hide the line if points were closer.
            @if frame.slot > 9.0 { @for (at, tip) in &line { (one.marker(*at, tip)) } }
        }
    };
    frame.around(title, series, &shapes)
}

/// Bar plot with a group of bars for each position.
pub fn bars(title: &str, axes: &Axes<'_>, series: &[Series], width: f64) -> Plot {
    let frame = Frame::new(axes, series, width);
    let thick = (0.76 * frame.slot / series.len().max(1) as f64).min(34.0);
    let zero = frame.y(0.0);
    let shapes = html! {
        @for (number, one) in series.iter().enumerate() {
            @for ((middle, y), tip) in frame.points(one) {
                rect x=(px(middle + (number as f64 - series.len() as f64 / 2.0) * thick + 1.0)) y=(px(y.min(zero)))
                    width=(px((thick - 2.0).max(1.0))) height=(px((y - zero).abs().max(0.5)))
                    fill=(one.fill()) stroke=(one.ink()) stroke-width="1.4" { title { (tip) } }
            }
        }
    };
    frame.around(title, series, &shapes)
}

/// Dot plot with a row for each position and a dot for each series, from 0 to 100 %.
pub fn dots(title: &str, places: &[String], series: &[Series], width: f64) -> Plot {
    let row = if places.len() > 40 { 15.0 } else { 22.0 };
    let left = widest(places, 22).max(30.0) + 20.0;
    let (right, bottom) = (width - 20.0, TOP + row * places.len() as f64);
    let x = |value: f64| left + (right - left) * (value / 100.0).clamp(0.0, 1.0);
    let (names, high) = legend(series, bottom + 40.0, width);
    let body = html! {
        @for value in (0..=5).map(|step| 20.0 * f64::from(step)) {
            (line((x(value), TOP), (x(value), bottom), "rule"))
            (text((x(value), bottom + 17.0), "quiet middle", &short(value)))
        }
        @for (index, place) in places.iter().enumerate() {
            @let y = TOP + (index as f64 + 0.5) * row;
            @let value = |one: &Series| one.values.get(index).copied().flatten().filter(|value| value.is_finite());
            @let ends = series.iter().filter_map(value).fold((f64::MAX, f64::MIN), |(a, b), v| (a.min(v), b.max(v)));
            (text((left - 9.0, y + 4.0), "end", &shortened(place, 22)))
            @if ends.0 < ends.1 { (line((x(ends.0), y), (x(ends.1), y), "quiet")) }
            @for (value, one) in series.iter().filter_map(|one| Some((value(one)?, one))) {
                (one.marker((x(value), y), &format!("{}, {place}: {value:.2} %", one.name)))
            }
        }
        (names)
    };
    Plot { title: title.into(), width, height: bottom + 32.0 + high, body }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        for (high, step) in [(1.0, 0.25), (0.37, 0.1), (9.0, 2.5), (100.0, 25.0), (3e-4, 1e-4)] {
            assert!((tick(high) - step).abs() < step * 1e-9, "{high}: {}", tick(high));
        }
        assert_eq!([short(0.25), short(20.0), short(1200.0), short(-2.5)], ["0.25", "20", "1200", "-2.5"]);
    }

    #[test]
    fn empty_and_infinite_values_give_valid_plots() {
        let extreme = vec![Some(f64::INFINITY), Some(-1e300)];
        for values in [vec![], vec![None], vec![Some(f64::NAN)], extreme, vec![Some(0.0)]] {
            let axes = Axes { x: "x", percent: false, places: vec!["<1>".into(); 2], groups: Vec::new() };
            let series =
                [Series { name: "a & b\u{1}".into(), colour: 9, dashed: true, values, band: vec![None; 2] }];
            for plot in [lines("t", &axes, &series, 400.0), bars("t", &axes, &series, 400.0)] {
                let svg = plot.standalone();
                for wrong in ["var(--", "<1>", "a & b", "\u{1}", "NaN"] {
                    assert!(!svg.contains(wrong), "{wrong:?} in {svg}");
                }
            }
        }
    }
}
