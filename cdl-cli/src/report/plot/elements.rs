//! Elements of plots: series, texts, lines and whole drawings.

use maud::{Markup, PreEscaped, html};

use crate::statistics::Spread;

/// CSS variables: name, value on a light page, value on a dark page. The colours of series, `s0` and so on, are based
/// on the palette of Okabe and Ito, which colour-blind readers can distinguish.
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
/// CSS classes of texts.
pub const STYLE: &str = ".heading{font-size:14px;font-weight:600}.quiet{fill:var(--quiet)}.small{font-size:11px}\
                         .middle{text-anchor:middle}.end{text-anchor:end}";
/// Number of colours of series in the palette.
const COLOURS: usize = 7;
/// Corners of the series' markers, in pixels from their centre. The first marker has no corners: it is a circle.
const MARKERS: [&[(f64, f64)]; 5] = [
    &[],
    &[(-3.5, -3.5), (3.5, -3.5), (3.5, 3.5), (-3.5, 3.5)],
    &[(0.0, -4.4), (4.2, 3.4), (-4.2, 3.4)],
    &[(0.0, -4.8), (4.8, 0.0), (0.0, 4.8), (-4.8, 0.0)],
    &[(0.0, 4.4), (4.2, -3.4), (-4.2, -3.4)],
];

/// Series of values: a line, or a bar or dot at each position.
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// Index of its colour and marker.
    pub colour: usize,
    /// True if the line is dashed and the markers are hollow.
    pub dashed: bool,
    /// Values by position; `None` if missing.
    pub values: Vec<Option<f64>>,
    /// Lower and upper end of a shaded band by position; empty for a series without a band.
    pub band: Vec<Option<(f64, f64)>>,
}

impl Series {
    /// Series of means, with a band of one standard deviation where there are several values.
    pub fn of_spreads(name: String, colour: usize, dashed: bool, spreads: &[Option<Spread>]) -> Self {
        let ends = |spread: &Option<Spread>| {
            let Spread { mean, deviation, .. } = (*spread)?;
            Some((mean - deviation?, mean + deviation?))
        };
        let values = spreads.iter().map(|spread| spread.map(|spread| spread.mean)).collect();
        Self { name, colour, dashed, values, band: spreads.iter().map(ends).collect() }
    }

    pub fn ink(&self) -> String {
        format!("var(--s{})", self.colour % COLOURS)
    }

    pub fn fill(&self) -> String {
        if self.dashed { "var(--page)".into() } else { self.ink() }
    }

    pub fn dashes(&self) -> Option<&'static str> {
        self.dashed.then_some("6 4")
    }

    /// Marker at a point, with a tooltip.
    pub fn marker(&self, (x, y): (f64, f64), tip: &str) -> Markup {
        let (fill, ink) = (self.fill(), self.ink());
        html! {
            @match MARKERS[self.colour % MARKERS.len()] {
                [] => circle cx=(px(x)) cy=(px(y)) r="3.6" fill=(fill) stroke=(ink) stroke-width="1.6" { title { (tip) } }
                corners => polygon points=(points(corners.iter().map(|(dx, dy)| (x + dx, y + dy))))
                    fill=(fill) stroke=(ink) stroke-width="1.6" { title { (tip) } }
            }
        }
    }
}

/// Drawing with its title and size.
pub struct Plot {
    /// Title, which is also the description for screen readers.
    pub title: String,
    /// Width in CSS pixels.
    pub width: f64,
    /// Height in CSS pixels.
    pub height: f64,
    /// Elements of the drawing below its title.
    pub body: Markup,
}

impl Plot {
    /// Element for a page. It shrinks with the page to a width at which text is legible, and scrolls below that.
    pub fn inline(&self) -> Markup {
        let least = 0.85 * self.width;
        self.element(Some(format!("width:{:.0}px;max-width:100%;min-width:{least:.0}px", self.width)))
    }

    /// Contents of an SVG file, on a white background.
    pub fn standalone(&self) -> String {
        let svg = self.element(None).into_string();
        let light = |svg: String, (name, light, _): &(&str, &str, &str)| {
            svg.replace(&format!("var(--{name})"), light)
        };
        printable(&PALETTE.iter().fold(svg, light)) + "\n"
    }

    /// SVG element: with a `style` for a page, or with style sheet and size for a file.
    fn element(&self, on_page: Option<String>) -> Markup {
        let (width, height) = (format!("{:.0}", self.width), format!("{:.0}", self.height));
        html! {
            svg xmlns="http://www.w3.org/2000/svg" viewBox={ "0 0 " (width) " " (height) } style=[&on_page]
                width=[on_page.is_none().then_some(&width)] height=[on_page.is_none().then_some(&height)] role="img" aria-label=(self.title)
                font-family="system-ui, 'Segoe UI', Helvetica, Arial, sans-serif" font-size="12" fill="var(--ink)" {
                @if on_page.is_none() { style { (PreEscaped(STYLE)) } }
                rect width=(width) height=(height) fill="var(--page)" {}
                (text((10.0, 20.0), "heading", &self.title))
                (self.body)
            }
        }
    }
}

/// Replaces control characters, which XML does not allow.
pub fn printable(markup: &str) -> String {
    markup.replace(|c: char| c.is_control() && !matches!(c, '\n' | '\t'), "\u{fffd}")
}

/// Text at a point, in classes of [`STYLE`].
pub fn text((x, y): (f64, f64), class: &str, what: &str) -> Markup {
    html! { text x=(px(x)) y=(px(y)) class=(class) { (what) } }
}

/// Text rotated by 90 degrees, read from bottom to top.
pub fn upright((x, y): (f64, f64), class: &str, what: &str) -> Markup {
    let (x, y) = (px(x), px(y));
    html! { text x=(x) y=(y) class=(class) transform={ "rotate(-90 " (x) " " (y) ")" } { (what) } }
}

pub fn line((x1, y1): (f64, f64), (x2, y2): (f64, f64), colour: &str) -> Markup {
    html! { line x1=(px(x1)) y1=(px(y1)) x2=(px(x2)) y2=(px(y2)) stroke={ "var(--" (colour) ")" } {} }
}

/// Line over the band of a single position. A band without width is not drawn, since renderers refuse such lines.
pub fn whisker(from: (f64, f64), to: (f64, f64), ink: &str, width: f64, opacity: f64) -> Markup {
    let [x1, y1, x2, y2] = [from.0, from.1, to.0, to.1].map(px);
    html! {
        @if (&x1, &y1) != (&x2, &y2) {
            line x1=(x1) y1=(y1) x2=(x2) y2=(y2) stroke=(ink) stroke-width=(width) stroke-opacity=(opacity) {}
        }
    }
}

/// Formats a length in pixels with one decimal.
pub fn px(length: f64) -> String {
    format!("{length:.1}")
}

/// Formats the corners of a polyline or polygon.
pub fn points(points: impl Iterator<Item = (f64, f64)>) -> String {
    points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect::<Vec<_>>().join(" ")
}

/// Approximate width in pixels of a text at 12 px.
pub fn text_width(text: &str) -> f64 {
    6.7 * text.chars().count() as f64
}

/// Approximate width in pixels of the longest of `names`, each shortened to `limit` characters.
pub fn widest(names: &[String], limit: usize) -> f64 {
    names.iter().map(|name| text_width(&shortened(name, limit))).fold(0.0, f64::max)
}

/// Shortens a text to `limit` characters.
pub fn shortened(text: &str, limit: usize) -> String {
    match text.chars().count() > limit {
        true => text.chars().take(limit - 1).chain(['…']).collect(),
        false => text.into(),
    }
}
