//! Plots as SVG. Colours are CSS variables (`var(--ink)`) on pages and constants in files.

mod dots;
mod elements;
mod frame;
mod heat;
mod lines;
mod steps;

pub use self::{
    dots::dots,
    elements::{PALETTE, Plot, STYLE, Series, printable},
    frame::Axes,
    heat::{Cell, Key, heat, picture},
    lines::{bars, lines},
    steps::of_steps,
};
