//! Axes, ticks and legend around the series of a plot.

use maud::{Markup, html};

use super::elements::{Plot, Series, line, px, shortened, text, text_width, widest};

/// Width of plots in CSS pixels. In a column of 3.3 inches, text of 12 px has 7 points; on a page it remains legible in
/// windows of 390 px.
pub const WIDTH: f64 = 400.0;
/// Left and right end of the horizontal axis.
pub const LEFT: f64 = 46.0;
pub const RIGHT: f64 = WIDTH - 14.0;
/// Upper end of the vertical axis and its length.
pub const TOP: f64 = 42.0;
const TALL: f64 = 210.0;
/// Largest number of characters of a tick's label.
const LABEL: usize = 14;

/// Axes of a plot.
pub struct Axes {
    /// Name of the horizontal axis.
    pub x: String,
    /// True if values are percent, from 0 to 100.
    pub percent: bool,
    /// Positions of the values.
    pub places: Vec<Place>,
    /// Labels of the horizontal axis. Those without room are left out.
    pub ticks: Vec<(f64, String)>,
    /// Beginning and name of each group of places; empty without groups.
    pub groups: Vec<(f64, String)>,
}

/// Position on the horizontal axis.
pub struct Place {
    /// Distance from the left end of the axis, as a share of its length.
    pub at: f64,
    /// Name in tooltips.
    pub name: String,
    /// Index of its group. Lines end with the group.
    pub group: usize,
}

impl Axes {
    /// Axes with a place for each name, at equal distances.
    pub fn of_names(x: &str, percent: bool, names: Vec<String>) -> Self {
        let count = names.len().max(1) as f64;
        let at = |index: usize| (index as f64 + 0.5) / count;
        let ticks = names.iter().enumerate().map(|(index, name)| (at(index), name.clone())).collect();
        let place = |(index, name)| Place { at: at(index), name, group: 0 };
        let places = names.into_iter().enumerate().map(place).collect();
        Self { x: x.into(), percent, places, ticks, groups: Vec::new() }
    }
}

/// Coordinate of a share of the horizontal axis.
pub fn across(share: f64) -> f64 {
    LEFT + (RIGHT - LEFT) * share
}

/// Round distance between ticks, for about five ticks in `span`.
pub fn tick(span: f64) -> f64 {
    let raw = (span / 4.0).max(f64::MIN_POSITIVE);
    let power = 10f64.powf(raw.log10().floor());
    let round = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().find(|round| round * power >= raw * 0.999);
    round.unwrap_or(10.0) * power
}

/// Label of a value, without trailing zeros.
pub fn short(value: f64) -> String {
    let text = if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.3}") };
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').into(),
        false => text,
    }
}

/// Draws the legend in rows as wide as the plot. Returns it with its height.
pub fn legend(series: &[Series], top: f64) -> (Markup, f64) {
    let (mut x, mut y) = (10.0, top);
    let mut place = |name: &str| {
        let taken = 38.0 + text_width(name) + 16.0;
        if x > 10.0 && x + taken > WIDTH {
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

/// Point of a series.
pub struct Point {
    /// Coordinates.
    pub at: (f64, f64),
    /// Coordinates of the lower and of the upper end of the band, if there is one.
    pub band: Option<(f64, f64)>,
    /// Index of the group.
    pub group: usize,
    /// Tooltip.
    pub tip: String,
}

/// Axes with the scale of the values.
pub struct Frame<'a> {
    axes: &'a Axes,
    /// Lower and upper end of the vertical axis, and distance between its ticks.
    low: f64,
    high: f64,
    step: f64,
}

impl<'a> Frame<'a> {
    pub fn new(axes: &'a Axes, series: &[Series]) -> Self {
        if axes.percent {
            return Self { axes, low: 0.0, high: 100.0, step: 20.0 };
        }
        // The axis includes zero, the largest value, and the bands.
        let ends = |one: &Series| -> Vec<f64> {
            let bands = one.band.iter().flatten().flat_map(|(low, high)| [*low, *high]);
            one.values.iter().flatten().copied().chain(bands).filter(|value| value.is_finite()).collect()
        };
        let values = series.iter().flat_map(ends);
        let (low, high) = values.fold((0f64, 0f64), |(low, high), value| (low.min(value), high.max(value)));
        let high = if high > low { high } else { low + 1.0 };
        let step = tick(high - low);
        Self { axes, low: (low / step).floor() * step, high: (high / step).ceil() * step, step }
    }

    /// Coordinate of a value.
    pub fn y(&self, value: f64) -> f64 {
        let share = (value - self.low) / (self.high - self.low);
        TOP + TALL * (1.0 - share.clamp(0.0, 1.0))
    }

    /// Points of the finite values.
    pub fn points(&self, series: &Series) -> Vec<Point> {
        let finite = |ends: &(f64, f64)| ends.0.is_finite() && ends.1.is_finite();
        let point = |(index, (value, place)): (usize, (&Option<f64>, &Place))| {
            let value = value.filter(|value| value.is_finite())?;
            let band = series.band.get(index).copied().flatten().filter(finite);
            let spread = band.map(|(_, high)| format!(" ± {}", short(high - value))).unwrap_or_default();
            Some(Point {
                at: (across(place.at), self.y(value)),
                band: band.map(|(low, high)| (self.y(low), self.y(high))),
                group: place.group,
                tip: format!("{}, {}: {}{spread}", series.name, place.name, short(value)),
            })
        };
        series.values.iter().zip(&self.axes.places).enumerate().filter_map(point).collect()
    }

    /// Labels of the horizontal axis, at least as far apart as the widest of them needs.
    fn ticks(&self) -> Vec<(f64, String)> {
        let label = |(at, name): &(f64, String)| (across(*at), shortened(name, LABEL));
        let all: Vec<(f64, String)> = self.axes.ticks.iter().map(label).collect();
        let names: Vec<String> = all.iter().map(|(_, name)| name.clone()).collect();
        let (room, mut free) = (widest(&names, LABEL) + 8.0, f64::MIN);
        let fits = |(x, _): &(f64, String)| {
            let fits = *x >= free;
            free = if fits { x + room - 0.01 } else { free };
            fits
        };
        all.into_iter().filter(fits).collect()
    }

    /// Lines between the groups, with the name of each group or, if it is too long, the last word of the name.
    fn groups(&self) -> Markup {
        let starts = self.axes.groups.iter().map(|(at, _)| across(*at));
        let ends = starts.clone().skip(1).chain([RIGHT]);
        let label = |name: &str, room: f64| {
            let words = [name, name.rsplit(' ').next().unwrap_or_default()];
            // The text has 11 px.
            let fits = |words: &&str| text_width(words) * 11.0 / 12.0 + 4.5 < room;
            words.into_iter().find(fits).unwrap_or_default().to_string()
        };
        html! {
            @for (((_, name), x), end) in self.axes.groups.iter().zip(starts).zip(ends) {
                (line((x, TOP), (x, TOP + TALL), "rule"))
                (text((x + 4.0, TOP + 10.0), "quiet small", &label(name, end - x)))
            }
        }
    }

    /// Plot with the given `shapes` of its series.
    pub fn around(&self, title: &str, series: &[Series], shapes: &Markup) -> Plot {
        let Self { axes, low, high, step } = self;
        let ticks = ((high - low) / step).round().clamp(1.0, 20.0) as usize;
        let bottom = TOP + TALL;
        let (names, more) = match series.len() {
            1 => (Markup::default(), 0.0),
            _ => legend(series, bottom + 56.0),
        };
        let body = html! {
            @for value in (0..=ticks).map(|index| low + index as f64 * step) {
                @let y = self.y(value);
                (line((LEFT, y), (RIGHT, y), if value == 0.0 { "quiet" } else { "rule" }))
                (text((LEFT - 7.0, y + 4.0), "quiet end", &short(value)))
            }
            @for (x, name) in self.ticks() { (text((x, bottom + 17.0), "quiet middle", &name)) }
            (self.groups())
            (text(((LEFT + RIGHT) / 2.0, bottom + 35.0), "quiet middle", &axes.x))
            (names) (shapes)
        };
        Plot { title: title.into(), width: WIDTH, height: bottom + 52.0 + more, body }
    }
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
    fn labels_without_room_are_left_out() {
        let names: Vec<String> = (1..=100).map(|number| number.to_string()).collect();
        let axes = Axes::of_names("task", true, names);
        let drawn = Frame::new(&axes, &[]).ticks();
        assert!(drawn.len() > 8 && drawn.windows(2).all(|pair| pair[1].0 - pair[0].0 >= text_width("100")));
        assert_eq!(drawn[0].1, "1");
    }
}
