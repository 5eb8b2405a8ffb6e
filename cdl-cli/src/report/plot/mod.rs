//! Plots as SVG. Colours are CSS variables (`var(--ink)`) on pages and constants in files.

mod axes;
mod elements;
mod heat;

pub use self::{
    axes::{Axes, bars, dots, lines},
    elements::{PALETTE, Plot, STYLE, Series, printable},
    heat::{Cell, Key, heat, picture},
};
