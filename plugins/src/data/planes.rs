//! Images of one size stored channel by channel in memory: the layout of CIFAR and the MNIST family.

use cdl_core::prelude::*;

/// Images with their labels.
#[derive(Default)]
pub(crate) struct Planes {
    /// Values of all images, in the order (image, channel, row, column).
    pub(crate) pixels: Vec<u8>,
    pub(crate) labels: Vec<u8>,
    /// Channels (1 for grey, 3 for red, green and blue), rows and columns of an image.
    pub(crate) shape: [usize; 3],
    /// Files that the images were read from.
    pub(crate) files: Vec<DataRecord>,
}

impl ImageSet for Planes {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn label(&self, index: usize) -> usize {
        self.labels[index].into()
    }

    fn image(&self, index: usize) -> Result<RgbImage> {
        let [channels, rows, columns] = self.shape;
        let size = channels * rows * columns;
        let image = &self.pixels[index * size..(index + 1) * size];
        Ok(RgbImage::from_fn(columns as u32, rows as u32, |x, y| {
            let at = y as usize * columns + x as usize;
            [0, 1, 2].map(|c| image[c % channels * rows * columns + at]).into()
        }))
    }

    fn in_memory(&self) -> bool {
        true
    }

    fn files(&self) -> Result<Vec<DataRecord>> {
        Ok(self.files.clone())
    }
}
