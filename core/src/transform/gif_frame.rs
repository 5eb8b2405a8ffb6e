//! GIF files whose first frame is smaller than the screen.

use std::io::Cursor;

use image::{Rgb, RgbImage};

/// Fills the screen around the first frame as PIL does: with the transparent colour of the frame, or else the first
/// colour of its palette. The decoder leaves it black.
///
/// # Errors
/// A header that cannot be read, with the reason.
pub(super) fn fill_surroundings(bytes: &[u8], image: &mut RgbImage) -> Result<(), String> {
    let mut options = gif::DecodeOptions::new();
    options.skip_frame_decoding(true);
    let mut decoder = options.read_info(Cursor::new(bytes)).map_err(|e| e.to_string())?;
    let Some(frame) = decoder.next_frame_info().map_err(|e| e.to_string())?.cloned() else { return Ok(()) };
    let palette = frame.palette.as_deref().or(decoder.global_palette()).unwrap_or_default();
    let first = 3 * usize::from(frame.transparent.unwrap_or_default());
    let Some(&[red, green, blue]) = palette.get(first..first + 3) else { return Ok(()) };
    let columns = u32::from(frame.left)..u32::from(frame.left) + u32::from(frame.width);
    let rows = u32::from(frame.top)..u32::from(frame.top) + u32::from(frame.height);
    for (x, y, pixel) in image.enumerate_pixels_mut() {
        if !columns.contains(&x) || !rows.contains(&y) {
            *pixel = Rgb([red, green, blue]);
        }
    }
    Ok(())
}
