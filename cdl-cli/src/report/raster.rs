//! Drawings as images, with fonts that this program carries: the same on every machine.

use std::io::Cursor;

use image::{DynamicImage, ImageFormat, RgbImage};
use resvg::{
    tiny_skia::{Color, Pixmap, Transform},
    usvg::{Options, Tree},
};

use crate::failure::Failure;

/// DejaVu Sans Condensed; its licence lies beside it.
const FONTS: [&[u8]; 2] = [
    include_bytes!("../../assets/fonts/DejaVuSansCondensed.ttf"),
    include_bytes!("../../assets/fonts/DejaVuSansCondensed-Bold.ttf"),
];
const FAMILY: &str = "DejaVu Sans Condensed";

/// Pixels for each of the page's: a plot of 560 across a column of 3.3 inches has 500 dots an inch.
const SCALE: f32 = 3.0;

/// The drawing `svg` as a PNG file, on white.
pub fn png(svg: &str) -> Result<Vec<u8>, Failure> {
    let fail = |reason: String| Failure::working(format!("a figure as PNG: {reason}"));
    let mut options = Options { font_family: FAMILY.into(), ..Options::default() };
    let fonts = options.fontdb_mut();
    FONTS.into_iter().for_each(|font| fonts.load_font_data(font.to_vec()));
    fonts.set_sans_serif_family(FAMILY);
    let tree = Tree::from_str(svg, &options).map_err(|e| fail(e.to_string()))?;
    let size = tree.size().to_int_size().scale_by(SCALE).ok_or_else(|| fail("it has no size".into()))?;
    let (width, height) = (size.width(), size.height());
    let mut pixels =
        Pixmap::new(width, height).ok_or_else(|| fail(format!("{width} x {height} pixels are too many")))?;
    pixels.fill(Color::WHITE);
    resvg::render(&tree, Transform::from_scale(SCALE, SCALE), &mut pixels.as_mut());
    // On white nothing is left transparent. Without growing: this crate is built with little optimisation.
    let mut opaque = vec![0; pixels.data().len() / 4 * 3];
    for (pixel, [r, g, b, _]) in opaque.as_chunks_mut().0.iter_mut().zip(pixels.data().as_chunks().0) {
        *pixel = [*r, *g, *b];
    }
    let image = RgbImage::from_raw(width, height, opaque).ok_or_else(|| fail("pixels are missing".into()))?;
    let mut file = Cursor::new(Vec::new());
    DynamicImage::from(image).write_to(&mut file, ImageFormat::Png).map_err(|e| fail(e.to_string()))?;
    Ok(file.into_inner())
}

#[cfg(test)]
mod tests {
    #[test]
    fn text_and_shapes_are_drawn_at_three_times_their_size() {
        let svg = |inner: &str| {
            format!("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"40\" height=\"20\">{inner}</svg>")
        };
        let dark = |inner: &str| {
            let Ok(png) = super::png(&svg(inner)) else { panic!("no PNG of {inner}") };
            let image = image::load_from_memory(&png).expect("an image").to_luma8();
            assert_eq!(image.dimensions(), (120, 60));
            image.pixels().filter(|pixel| pixel.0[0] < 128).count()
        };
        assert_eq!(dark("<rect x=\"10\" y=\"5\" width=\"20\" height=\"10\"/>"), 60 * 30);
        assert_eq!(dark(""), 0);
        let text = |weight: u32| {
            dark(&format!(
                "<text x=\"2\" y=\"15\" font-family=\"system-ui, sans-serif\" font-weight=\"{weight}\">Ag</text>"
            ))
        };
        assert!(text(400) > 100 && text(600) > text(400), "{} {}", text(400), text(600));
        assert!(super::png("<svg").is_err());
    }
}
