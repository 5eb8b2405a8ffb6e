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

#[cfg(test)]
#[cfg(feature = "pdf")]
mod tests {
    use super::pdf;
    use crate::report::plot::picture;

    #[test]
    fn one_drawing_gives_the_same_bytes_and_images_are_embedded() {
        let svg = |inner: &str| {
            format!("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"40\" height=\"20\">{inner}</svg>")
        };
        let text = svg("<text x=\"2\" y=\"15\" font-family=\"system-ui, sans-serif\">Ag ± 1</text>");
        assert_eq!(pdf(&text), pdf(&text));
        let image = picture("t", ("a", "b"), &vec![vec![0.5; 120]; 120], &[]).expect("an image").standalone();
        let [text, image] = [text, image].map(|svg| {
            let bytes = pdf(&svg).expect("PDF");
            let text = String::from_utf8_lossy(&bytes).into_owned();
            (text.contains("/FontFile2"), text.contains("/Subtype /Image"))
        });
        assert_eq!((text, image), ((true, false), (true, true)));
        assert!(pdf("<svg").is_err());
    }
}
