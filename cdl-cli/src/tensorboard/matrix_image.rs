//! Image of an accuracy matrix.

use cdl_core::{
    error::{Error, Result},
    traits::Role,
};

use crate::{
    report::{
        accuracy_section,
        plot::picture,
        raster::{self, Image},
    },
    statistics::Spread,
};

/// Maximum number of tasks for which the cells of the image contain numbers.
const MAX_TASKS_WITH_NUMBERS: usize = 24;
/// Maximum side of the image in pixels, limited because an image is written after every task.
const MAX_SIDE: f64 = 1024.0;

/// Draws an accuracy matrix in percent, whose row `i` has `i + 1` values, as the report does. Returns `None` in builds
/// without the feature `png`.
pub fn image(role: Role, rows: &[Vec<f64>]) -> Result<Option<Image>> {
    if !raster::AVAILABLE {
        return Ok(None);
    }
    let fail = |reason: String| Error::Tasks(format!("the accuracy matrix cannot be drawn: {reason}"));
    let plot = match rows.len() {
        ..=MAX_TASKS_WITH_NUMBERS => accuracy_section::matrix(role.as_str(), &spreads(rows)),
        tasks => {
            let shades: Vec<Vec<f64>> =
                rows.iter().map(|row| row.iter().map(|accuracy| accuracy / 100.0).collect()).collect();
            let title = format!("{}, accuracy of {tasks} tasks", role.as_str());
            picture(&title, ("after task", "task"), &shades, &[])
                .ok_or_else(|| fail("there are too many tasks".into()))?
        }
    };
    let scale = (MAX_SIDE / plot.width.max(plot.height)).min(1.0);
    raster::png(&plot.standalone(), scale as f32).map(Some).map_err(fail)
}

/// Accuracies of a single run.
fn spreads(rows: &[Vec<f64>]) -> Vec<Vec<Spread>> {
    rows.iter().map(|row| row.iter().filter_map(|accuracy| Spread::of(&[*accuracy])).collect()).collect()
}

#[cfg(test)]
#[cfg(feature = "png")]
mod tests {
    use super::*;
    use cdl_core::{image::RgbImage, transform::Exif};

    fn drawn(rows: &[Vec<f64>]) -> (Image, RgbImage) {
        let image = image(Role::Student, rows).expect("image").expect("images are drawn");
        let pixels = cdl_core::transform::decode(&image.png, Exif::Ignore).expect("PNG");
        assert_eq!(pixels.dimensions(), (image.width, image.height));
        (image, pixels)
    }

    #[test]
    fn digits_contrast_with_every_shade() {
        let (_, pixels) = drawn(&[vec![100.0], vec![50.0, 0.0]]);
        // The edges of the cell are left out.
        let inked = |column: u32, row: u32, ink: fn(u8) -> bool| {
            let places =
                (0..36).flat_map(|x| (0..28).map(move |y| (46 + 46 * column + x, 77 + 38 * row + y)));
            places.filter(|(x, y)| ink(pixels.get_pixel(*x, *y).0[0])).count()
        };
        assert!(inked(0, 0, |red| red > 150) > 10, "white digits on dark");
        assert!(inked(1, 1, |red| red < 110) > 10, "dark digits on pale");
    }

    /// Accuracies that differ between neighbours, so that images compress badly.
    fn incompressible(tasks: usize) -> Vec<Vec<f64>> {
        (0..tasks).map(|i| (0..=i).map(|j| ((i * 7919 + j * 104_729) % 101) as f64).collect()).collect()
    }

    #[test]
    fn the_size_of_images_is_bounded_for_any_number_of_tasks() {
        for (tasks, size) in
            [(10, 120_000), (24, 150_000), (25, 50_000), (100, 100_000), (1000, 2_000_000), (2100, 2_000_000)]
        {
            let (image, _) = drawn(&incompressible(tasks));
            let (side, bytes) = (image.width.max(image.height), image.png.len());
            assert!(side <= MAX_SIDE as u32 && bytes < size, "{tasks} tasks: {side} px, {bytes} bytes");
        }
        assert!(image(Role::Teacher, &[]).is_ok());
    }

    #[test]
    fn large_matrices_have_a_cell_for_each_task() {
        let rows = incompressible(30);
        let (_, pixels) = drawn(&rows);
        let cell = |column: u32, row: u32| pixels.get_pixel(64 + 6 * column + 3, 72 + 6 * row + 3).0[0];
        for (i, j) in [(0, 0), (29, 0), (29, 29), (17, 5)] {
            let red = 232.0 - (232.0 - 8.0) * rows[i][j] / 100.0;
            assert_eq!(cell(j as u32, i as u32), red.round() as u8, "after task {i}, task {j}");
        }
        assert_eq!(cell(29, 0), 255, "not tested yet");
    }
}
