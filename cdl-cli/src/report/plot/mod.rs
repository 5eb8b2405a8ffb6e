//! Plots as SVG. Colours are variables of the page (`var(--ink)`); files of their own have values in their place.

mod axes;
mod elements;
mod heat;

pub use self::{
    axes::{Axes, bars, dots, lines},
    elements::{PALETTE, Plot, STYLE, Series, printable},
    heat::{Cell, Key, heat, picture},
};
