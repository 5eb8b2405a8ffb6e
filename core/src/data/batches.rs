//! From the images of a pass to its batches.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use image::RgbImage;
use rayon::prelude::*;

use crate::{
    data::{image_source::Source, ordered::Ordered},
    error::{Error, Result},
    system::device,
    traits::Batch,
    transform::write_pixels,
};

/// An image on its way into a batch.
pub(super) struct Prepared {
    /// Its number in the set.
    pub(super) index: usize,
    /// Its label in stream order.
    pub(super) label: u32,
    /// What the network sees.
    pub(super) square: Result<Arc<RgbImage>>,
}

/// Batches of `size` images in their order.
pub(super) struct Assembly {
    pub(super) source: Arc<Source>,
    pub(super) images: Ordered<Prepared>,
    pub(super) size: usize,
    /// Whether the last batch may have fewer images; otherwise it is dropped.
    pub(super) partial: bool,
    pub(super) device: Device,
    /// What to say if there are images enough for a batch and yet none could be filled.
    pub(super) barren: Option<String>,
}

impl Assembly {
    /// The next batch's images; those that follow make up for those that are left out. None at the end.
    fn gather(&mut self) -> Result<Vec<(Arc<RgbImage>, u32)>> {
        let mut images = Vec::new();
        while images.len() < self.size {
            if !self.partial && images.len() + self.images.left() < self.size {
                return Ok(Vec::new());
            }
            match self.images.next() {
                None => break,
                Some(Prepared { index, label, square }) => match square {
                    Ok(square) => images.push((square, label)),
                    Err(error) => self.source.leave_out(index, error)?,
                },
            }
        }
        Ok(images)
    }

    fn batch(&self, images: &[(Arc<RgbImage>, u32)]) -> Result<Batch> {
        let squares: Vec<&RgbImage> = images.iter().map(|(square, _)| square.as_ref()).collect();
        let labels: Vec<u32> = images.iter().map(|&(_, label)| label).collect();
        // Labels first: `upload` ends when everything that this thread copied to the device is there.
        let labels = Tensor::from_vec(labels, images.len(), &self.device)?;
        Ok(Batch { pixels: upload_squares(&squares, self.source.side(), &self.device)?, labels })
    }
}

/// Pixels `(B, 3, S, S)` in `[0, 1]` of squares with the side `side`, on `device`.
pub(crate) fn upload_squares(squares: &[&RgbImage], side: usize, device: &Device) -> Result<Tensor> {
    let mut values = vec![0f32; squares.len() * 3 * side * side];
    values
        .par_chunks_mut(3 * side * side)
        .zip(squares)
        .for_each(|(values, square)| write_pixels(square, values));
    device::upload(values, (squares.len(), 3, side, side), device)
}

impl Iterator for Assembly {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Result<Batch>> {
        let batch = match self.gather() {
            Ok(images) if images.is_empty() => return self.barren.take().map(|why| Err(Error::Tasks(why))),
            Ok(images) => self.batch(&images),
            Err(error) => Err(error),
        };
        self.barren = None;
        if batch.is_err() {
            self.images.stop();
        }
        Some(batch)
    }
}
