//! Conversion of SVG drawings to PNG images.

/// True if this build can write PNG images.
pub const AVAILABLE: bool = cfg!(feature = "png");
/// Error message of builds that cannot.
pub const MISSING: &str = "this build has no PNG support; build it with the feature `png`";

/// PNG image, 8-bit RGB.
pub struct Image {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Bytes of the file.
    pub png: Vec<u8>,
}

/// Fails, since this build lacks the feature `png`.
#[cfg(not(feature = "png"))]
pub fn png(_svg: &str, _scale: f32) -> Result<Image, String> {
    Err(MISSING.into())
}

#[cfg(feature = "png")]
pub use self::resvg_image::png;

/// Rendering by resvg with built-in fonts.
#[cfg(feature = "png")]
mod resvg_image {
    use std::io::Cursor;

    use image::{ImageFormat, RgbImage};
    use resvg::{
        tiny_skia::{Color, Pixmap, Transform},
        usvg::{Options, Tree},
    };

    use super::Image;
    use crate::report::fonts::{FAMILY, FONTS};

    /// Renders `svg` at `scale` times its size on a white background.
    pub fn png(svg: &str, scale: f32) -> Result<Image, String> {
        let mut options = Options { font_family: FAMILY.into(), ..Options::default() };
        let fonts = options.fontdb_mut();
        FONTS.into_iter().for_each(|font| fonts.load_font_data(font.to_vec()));
        fonts.set_sans_serif_family(FAMILY);
        let tree = Tree::from_str(svg, &options).map_err(|e| e.to_string())?;
        let size = tree.size().to_int_size().scale_by(scale).ok_or("the drawing has no size")?;
        let (width, height) = (size.width(), size.height());
        let mut pixels =
            Pixmap::new(width, height).ok_or_else(|| format!("{width} x {height} pixels are too many"))?;
        pixels.fill(Color::WHITE);
        resvg::render(&tree, Transform::from_scale(scale, scale), &mut pixels.as_mut());
        // Drops the alpha channel, since the background is opaque. Without `push`: this crate is built with little
        // optimisation.
        let mut opaque = vec![0; pixels.data().len() / 4 * 3];
        for (pixel, [r, g, b, _]) in opaque.as_chunks_mut().0.iter_mut().zip(pixels.data().as_chunks().0) {
            *pixel = [*r, *g, *b];
        }
        let image = RgbImage::from_raw(width, height, opaque).ok_or("pixels are missing")?;
        let mut file = Cursor::new(Vec::new());
        image.write_to(&mut file, ImageFormat::Png).map_err(|e| e.to_string())?;
        Ok(Image { width, height, png: file.into_inner() })
    }
}

#[cfg(test)]
#[cfg(feature = "png")]
mod tests {
    #[test]
    fn text_and_shapes_are_rendered_at_three_times_their_size() {
        let svg = |inner: &str| {
            format!("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"40\" height=\"20\">{inner}</svg>")
        };
        let dark = |inner: &str| {
            let drawn = super::png(&svg(inner), 3.0).expect("PNG");
            let image = image::load_from_memory(&drawn.png).expect("an image").to_luma8();
            assert_eq!((image.dimensions(), drawn.width, drawn.height), ((120, 60), 120, 60));
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
        assert!(super::png("<svg", 1.0).is_err());
    }
}
