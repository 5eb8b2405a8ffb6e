//! Plots as SVG: heat maps, lines, bars and dots. Colours are variables of the page (`var(--ink)`), which
//! [`standalone`] replaces for files of their own.

mod band;
mod heat;

use std::fmt::Write;

pub use self::{
    band::banded,
    heat::{Cell, Key, Picture, heat, picture},
};
use super::html::escape;

/// Variables of the page: name, value on a light page, value on a dark one. `s0` and so on are the colours of series, those
/// of Okabe and Ito, which colour-blind readers can tell apart.
pub const PALETTE: [(&str, &str, &str); 11] = [
    ("page", "#ffffff", "#15181c"),
    ("ink", "#1d2329", "#e4e7ea"),
    ("quiet", "#5d6770", "#9aa4ad"),
    ("rule", "#dde2e6", "#363d44"),
    ("s0", "#0072b2", "#56b4e9"),
    ("s1", "#d55e00", "#f08a3c"),
    ("s2", "#009e73", "#2fc79b"),
    ("s3", "#b0568d", "#dd8fbe"),
    ("s4", "#8a6d00", "#e6c229"),
    ("s5", "#3a3f8f", "#9aa0f0"),
    ("s6", "#6b6b6b", "#b5b5b5"),
];
/// How many of them are colours of series.
const COLOURS: usize = 7;
const MARKERS: usize = 5;
/// Dashes by style.
const DASHES: [&str; 2] = ["", " stroke-dasharray=\"6 4\""];

/// One line, or one bar or dot in each group.
pub struct Series {
    /// In the legend.
    pub name: String,
    /// Which colour and marker.
    pub colour: usize,
    /// Whether the line is dashed and the marker hollow.
    pub dashed: bool,
    /// Values by place; none where it has none.
    pub values: Vec<Option<f64>>,
}

impl Series {
    fn ink(&self) -> String {
        format!("var(--s{})", self.colour % COLOURS)
    }

    fn dash(&self) -> &'static str {
        DASHES[usize::from(self.dashed)]
    }

    /// A small shape of its own, with a tip.
    fn marker(&self, x: f64, y: f64, tip: &str) -> String {
        let fill = if self.dashed { "var(--page)".into() } else { self.ink() };
        let style = format!("fill=\"{fill}\" stroke=\"{}\" stroke-width=\"1.6\"", self.ink());
        let points = |points: &[(f64, f64)]| {
            let points: Vec<String> =
                points.iter().map(|(dx, dy)| format!("{:.1},{:.1}", x + dx, y + dy)).collect();
            format!("<polygon points=\"{}\" {style}>", points.join(" "))
        };
        let (open, end) = match self.colour % MARKERS {
            0 => (format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.6\" {style}>"), "circle"),
            1 => (points(&[(-3.5, -3.5), (3.5, -3.5), (3.5, 3.5), (-3.5, 3.5)]), "polygon"),
            2 => (points(&[(0.0, -4.4), (4.2, 3.4), (-4.2, 3.4)]), "polygon"),
            3 => (points(&[(0.0, -4.8), (4.8, 0.0), (0.0, 4.8), (-4.8, 0.0)]), "polygon"),
            _ => (points(&[(0.0, 4.4), (4.2, -3.4), (-4.2, -3.4)]), "polygon"),
        };
        format!("{open}<title>{}</title></{end}>", escape(tip))
    }
}

/// A drawing and its size.
pub struct Plot {
    /// What it shows.
    pub title: String,
    width: f64,
    height: f64,
    body: String,
}

impl Plot {
    /// The element for a page. It shrinks with the page down to a width at which it can still be read.
    pub fn inline(&self) -> String {
        let least = self.width.min((0.62 * self.width).max(300.0));
        self.element(&format!("style=\"width:{:.0}px;max-width:100%;min-width:{least:.0}px\"", self.width))
    }

    /// A file of its own, on white.
    pub fn standalone(&self) -> String {
        let size = format!("width=\"{:.0}\" height=\"{:.0}\"", self.width, self.height);
        let mut svg = self.element(&size);
        for (name, light, _) in PALETTE {
            svg = svg.replace(&format!("var(--{name})"), light);
        }
        svg + "\n"
    }

    fn element(&self, size: &str) -> String {
        let (width, height, title) = (self.width, self.height, escape(&self.title));
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" {size} role=\"img\" \
             aria-label=\"{title}\" font-family=\"system-ui, 'Segoe UI', Helvetica, Arial, sans-serif\" \
             font-size=\"12\" fill=\"var(--ink)\"><rect width=\"{width:.0}\" height=\"{height:.0}\" \
             fill=\"var(--page)\"/>{}</svg>",
            self.body
        )
    }
}

/// About how wide a text of 12 px is.
fn wide(text: &str) -> f64 {
    6.7 * text.chars().count() as f64
}

/// `text`, cut where it would be longer than `most` characters.
fn cut(text: &str, most: usize) -> String {
    match text.chars().count() > most {
        true => text.chars().take(most - 1).chain(['…']).collect(),
        false => text.into(),
    }
}

fn text(x: f64, y: f64, anchor: &str, more: &str, what: &str) -> String {
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\"{more}>{}</text>", escape(what))
}

fn heading(title: &str) -> String {
    text(10.0, 20.0, "start", " font-size=\"14\" font-weight=\"600\"", title)
}

fn line(from: (f64, f64), to: (f64, f64), colour: &str) -> String {
    format!(
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"var(--{colour})\"/>",
        from.0, from.1, to.0, to.1
    )
}

/// The names of series with their markers, in rows no wider than `width`; gives back the height too.
fn legend(series: &[Series], top: f64, width: f64) -> (String, f64) {
    let (mut svg, mut x, mut y) = (String::new(), 10.0, top);
    for one in series {
        let name = cut(&one.name, 44);
        let taken = 38.0 + wide(&name) + 16.0;
        if x > 10.0 && x + taken > width {
            (x, y) = (10.0, y + 20.0);
        }
        let _ = write!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\" stroke=\"{}\" stroke-width=\"2\"{}/>{}{}",
            x + 28.0,
            one.ink(),
            one.dash(),
            one.marker(x + 14.0, y, &one.name),
            text(x + 35.0, y + 4.0, "start", "", &name)
        );
        x += taken;
    }
    (svg, y + 20.0 - top)
}

/// A round distance between ticks so that there are about five up to `span`.
fn tick(span: f64) -> f64 {
    let raw = (span / 4.0).max(f64::MIN_POSITIVE);
    let power = 10f64.powf(raw.log10().floor());
    let round = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().find(|round| round * power >= raw * 0.999);
    round.unwrap_or(10.0) * power
}

/// A number at a tick, without needless digits.
fn short(value: f64) -> String {
    let text = if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.3}") };
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').into(),
        false => text,
    }
}

/// Where values lie on an axis.
struct Scale {
    low: f64,
    high: f64,
    step: f64,
}

impl Scale {
    /// Percent, or from zero (or below) up to the largest value.
    fn of(series: &[Series], percent: bool) -> Self {
        if percent {
            return Self { low: 0.0, high: 100.0, step: 20.0 };
        }
        let values =
            series.iter().flat_map(|one| one.values.iter().flatten()).filter(|value| value.is_finite());
        let (low, high) = values.fold((0f64, 0f64), |(low, high), &value| (low.min(value), high.max(value)));
        let high = if high > low { high } else { low + 1.0 };
        let step = tick(high - low);
        Self { low: (low / step).floor() * step, high: (high / step).ceil() * step, step }
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let count = ((self.high - self.low) / self.step).round().clamp(1.0, 20.0) as usize;
        (0..=count).map(|index| self.low + index as f64 * self.step)
    }

    /// From 0 to 1.
    fn at(&self, value: f64) -> f64 {
        ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }
}

/// What is written along the axes.
pub struct Axes<'a> {
    /// Below.
    pub x: &'a str,
    /// Values are percent, from 0 to 100.
    pub percent: bool,
    /// Name of each place.
    pub places: Vec<String>,
    /// Places before which a new group begins, with its name.
    pub groups: Vec<(usize, String)>,
}

const LEFT: f64 = 50.0;
const TOP: f64 = 42.0;
const TALL: f64 = 220.0;

/// The frame of lines and bars: ticks, names and legend, and where a value stands. Gives back the plot without its series.
fn frame(title: &str, axes: &Axes<'_>, series: &[Series], scale: &Scale, width: f64) -> (Plot, f64) {
    let (right, bottom) = (width - 14.0, TOP + TALL);
    let mut body = heading(title);
    for value in scale.ticks() {
        let y = bottom - TALL * scale.at(value);
        body += &line((LEFT, y), (right, y), if value == 0.0 { "quiet" } else { "rule" });
        body += &text(LEFT - 7.0, y + 4.0, "end", " fill=\"var(--quiet)\"", &short(value));
    }
    let slot = (right - LEFT) / axes.places.len().max(1) as f64;
    let longest = axes.places.iter().map(|place| wide(&cut(place, 14))).fold(0.0, f64::max) + 8.0;
    let every = (longest / slot).ceil().max(1.0) as usize;
    for (index, place) in axes.places.iter().enumerate().step_by(every) {
        let x = LEFT + (index as f64 + 0.5) * slot;
        body += &text(x, bottom + 17.0, "middle", " fill=\"var(--quiet)\"", &cut(place, 14));
    }
    for (index, name) in &axes.groups {
        let x = LEFT + *index as f64 * slot;
        body += &line((x, TOP), (x, bottom), "rule");
        body += &text(x + 4.0, TOP + 10.0, "start", " font-size=\"10\" fill=\"var(--quiet)\"", name);
    }
    body += &text((LEFT + right) / 2.0, bottom + 35.0, "middle", " fill=\"var(--quiet)\"", axes.x);
    let (names, high) = match series.len() {
        1 => (String::new(), 0.0),
        _ => legend(series, bottom + 56.0, width),
    };
    let height = bottom + 52.0 + high;
    (Plot { title: title.into(), width, height, body: body + &names }, slot)
}

/// Lines over places.
pub fn lines(title: &str, axes: &Axes<'_>, series: &[Series], width: f64) -> Plot {
    let scale = Scale::of(series, axes.percent);
    let (mut plot, slot) = frame(title, axes, series, &scale, width);
    for one in series {
        let points: Vec<(f64, f64, f64, &str)> = one
            .values
            .iter()
            .zip(&axes.places)
            .enumerate()
            .filter_map(|(index, (value, place))| {
                let value = value.filter(|value| value.is_finite())?;
                Some((
                    LEFT + (index as f64 + 0.5) * slot,
                    TOP + TALL * (1.0 - scale.at(value)),
                    value,
                    place.as_str(),
                ))
            })
            .collect();
        let path: Vec<String> = points.iter().map(|(x, y, ..)| format!("{x:.1},{y:.1}")).collect();
        if path.len() > 1 {
            let _ = write!(
                plot.body,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\" stroke-linejoin=\"round\"{}/>",
                path.join(" "),
                one.ink(),
                one.dash()
            );
        }
        for (x, y, value, place) in points {
            let tip = format!("{}, {place}: {}", one.name, short(value));
            // Where points lie close, their marks would hide the line.
            plot.body += &match slot > 9.0 {
                true => one.marker(x, y, &tip),
                false => String::new(),
            };
        }
    }
    plot
}

/// Bars in groups, a group for each place.
pub fn bars(title: &str, axes: &Axes<'_>, series: &[Series], width: f64) -> Plot {
    let scale = Scale::of(series, axes.percent);
    let (mut plot, slot) = frame(title, axes, series, &scale, width);
    let thick = (0.76 * slot / series.len().max(1) as f64).min(34.0);
    let zero = TOP + TALL * (1.0 - scale.at(0.0));
    for (number, one) in series.iter().enumerate() {
        for (index, (value, place)) in one.values.iter().zip(&axes.places).enumerate() {
            let Some(value) = value.as_ref().filter(|value| value.is_finite()) else { continue };
            let middle = LEFT + (index as f64 + 0.5) * slot;
            let x = middle + (number as f64 - series.len() as f64 / 2.0) * thick;
            let y = TOP + TALL * (1.0 - scale.at(*value));
            let fill = if one.dashed { "var(--page)".into() } else { one.ink() };
            let _ = write!(
                plot.body,
                "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{fill}\" stroke=\"{}\" \
                 stroke-width=\"1.4\"><title>{}</title></rect>",
                x + 1.0,
                y.min(zero),
                (thick - 2.0).max(1.0),
                (y - zero).abs().max(0.5),
                one.ink(),
                escape(&format!("{}, {place}: {}", one.name, short(*value)))
            );
        }
    }
    plot
}

/// A row for each place with a dot for each series, from 0 to 100 %.
pub fn dots(title: &str, places: &[String], series: &[Series], width: f64) -> Plot {
    let row = if places.len() > 40 { 15.0 } else { 22.0 };
    let left = places.iter().map(|place| wide(&cut(place, 22))).fold(30.0, f64::max) + 20.0;
    let (right, bottom) = (width - 20.0, TOP + row * places.len() as f64);
    let x = |value: f64| left + (right - left) * (value / 100.0).clamp(0.0, 1.0);
    let mut body = heading(title);
    for value in [0.0, 20.0, 40.0, 60.0, 80.0, 100.0] {
        body += &line((x(value), TOP), (x(value), bottom), "rule");
        body += &text(x(value), bottom + 17.0, "middle", " fill=\"var(--quiet)\"", &short(value));
    }
    for (index, place) in places.iter().enumerate() {
        let y = TOP + (index as f64 + 0.5) * row;
        let values: Vec<(f64, &Series)> = series
            .iter()
            .filter_map(|one| {
                Some((one.values.get(index).copied().flatten().filter(|value| value.is_finite())?, one))
            })
            .collect();
        let ends =
            values.iter().fold((f64::MAX, f64::MIN), |(a, b), (value, _)| (a.min(*value), b.max(*value)));
        body += &text(left - 9.0, y + 4.0, "end", "", &cut(place, 22));
        if ends.0 < ends.1 {
            body += &line((x(ends.0), y), (x(ends.1), y), "quiet");
        }
        for (value, one) in values {
            body += &one.marker(x(value), y, &format!("{}, {place}: {value:.2} %", one.name));
        }
    }
    let (names, high) = legend(series, bottom + 40.0, width);
    Plot { title: title.into(), width, height: bottom + 32.0 + high, body: body + &names }
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
    fn a_plot_of_nothing_and_of_wild_values_is_still_a_plot() {
        for values in [
            vec![],
            vec![None],
            vec![Some(f64::NAN)],
            vec![Some(f64::INFINITY), Some(-1e300)],
            vec![Some(0.0)],
        ] {
            let axes = Axes { x: "x", percent: false, places: vec!["<1>".into(); 2], groups: Vec::new() };
            let series = [Series { name: "a & b".into(), colour: 9, dashed: true, values }];
            for plot in [lines("t", &axes, &series, 400.0), bars("t", &axes, &series, 400.0)] {
                let svg = plot.standalone();
                assert!(!svg.contains("var(--") && !svg.contains("<1>") && !svg.contains("NaN"), "{svg}");
            }
        }
    }
}
