//! Conversion of SVG drawings to PDF files.

/// True if this build can write PDF files.
pub const AVAILABLE: bool = cfg!(feature = "pdf");
/// Error message of builds that cannot.
pub const MISSING: &str = "this build has no PDF support; build it with the feature `pdf`";
/// CSS pixels per inch.
#[cfg(feature = "pdf")]
const PIXELS_PER_INCH: f32 = 96.0;

/// Fails, since this build lacks the feature `pdf`.
#[cfg(not(feature = "pdf"))]
pub fn pdf(_svg: &str) -> Result<Vec<u8>, String> {
    Err(MISSING.into())
}

/// Converts `svg` to a page of its size. Shapes remain vectors; text can be selected, with the built-in fonts embedded.
#[cfg(feature = "pdf")]
pub fn pdf(svg: &str) -> Result<Vec<u8>, String> {
    use svg2pdf::{ConversionOptions, PageOptions, to_pdf, usvg};

    use super::fonts::{FAMILY, FONTS};

    let mut options = usvg::Options { font_family: FAMILY.into(), ..usvg::Options::default() };
    let fonts = options.fontdb_mut();
    FONTS.into_iter().for_each(|font| fonts.load_font_data(font.to_vec()));
    fonts.set_sans_serif_family(FAMILY);
    let tree = usvg::Tree::from_str(svg, &options).map_err(|e| e.to_string())?;
    to_pdf(&tree, ConversionOptions::default(), PageOptions { dpi: PIXELS_PER_INCH })
        .map_err(|e| e.to_string())
}
