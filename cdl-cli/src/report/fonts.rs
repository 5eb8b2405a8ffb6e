//! Fonts of images and PDF files, which are therefore the same on every machine.
#![cfg(any(feature = "png", feature = "pdf"))]

/// DejaVu Sans Condensed; the licence is in the same folder.
pub const FONTS: [&[u8]; 2] = [
    include_bytes!("../../assets/fonts/DejaVuSansCondensed.ttf"),
    include_bytes!("../../assets/fonts/DejaVuSansCondensed-Bold.ttf"),
];
/// Name of the font's family.
pub const FAMILY: &str = "DejaVu Sans Condensed";
