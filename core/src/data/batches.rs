//! Assembly of images into batches.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use image::RgbImage;
use rayon::prelude::*;

use crate::{
    data::{image_source::ImageSource, ordered::Ordered},
    error::{Error, Result},
    system::device,
    traits::Batch,
    transform::write_pixels,
};

/// Image that has been prepared for a batch.
pub(super) struct Prepared {
    /// Index in the image set.
    pub(super) index: usize,
    /// Label in stream order.
    pub(super) label: u32,
    /// Transformed image, square, as the network receives it.
    pub(super) square: Result<Arc<RgbImage>>,
}

/// Iterator over batches of `size` images, in order.
pub(super) struct BatchAssembler {
    pub(super) source: Arc<ImageSource>,
    pub(super) images: Ordered<Prepared>,
    pub(super) size: usize,
    /// Whether the last batch may have fewer images; otherwise it is dropped.
    pub(super) partial: bool,
    pub(super) device: Device,
    /// Error message for a pass without any batch, whose images would fill one if all were readable. `None` for other
    /// passes, and after the first batch.
    pub(super) no_batch_message: Option<String>,
}

impl BatchAssembler {
    /// Collects the images of the next batch. The images that follow replace skipped ones. Empty at the end.
    fn gather(&mut self) -> Result<Vec<(Arc<RgbImage>, u32)>> {
        let mut images = Vec::new();
        while images.len() < self.size {
            if !self.partial && images.len() + self.images.remaining() < self.size {
                return Ok(Vec::new());
            }
            match self.images.next() {
                None => break,
                Some(Prepared { index, label, square }) => match square {
                    Ok(square) => images.push((square, label)),
                    Err(error) => self.source.skip_image(index, error)?,
                },
            }
        }
        Ok(images)
    }

    fn batch(&self, images: &[(Arc<RgbImage>, u32)]) -> Result<Batch> {
        let squares: Vec<&RgbImage> = images.iter().map(|(square, _)| square.as_ref()).collect();
        let labels: Vec<u32> = images.iter().map(|&(_, label)| label).collect();
        // Labels first: `upload` waits for all copies of this thread to the device.
        let labels = Tensor::from_vec(labels, images.len(), &self.device)?;
        Ok(Batch { pixels: upload_squares(&squares, self.source.side(), &self.device)?, labels })
    }
}

/// Copies square images of side `side` to `device` as pixels `(B, 3, S, S)` in `[0, 1]`.
pub(crate) fn upload_squares(squares: &[&RgbImage], side: usize, device: &Device) -> Result<Tensor> {
    let mut values = vec![0f32; squares.len() * 3 * side * side];
    values
        .par_chunks_mut(3 * side * side)
        .zip(squares)
        .for_each(|(values, square)| write_pixels(square, values));
    device::upload(values, (squares.len(), 3, side, side), device)
}

impl Iterator for BatchAssembler {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Result<Batch>> {
        let batch = match self.gather() {
            Ok(images) if images.is_empty() => {
                return self.no_batch_message.take().map(|message| Err(Error::Tasks(message)));
            }
            Ok(images) => self.batch(&images),
            Err(error) => Err(error),
        };
        self.no_batch_message = None;
        if batch.is_err() {
            self.images.stop();
        }
        Some(batch)
    }
}
