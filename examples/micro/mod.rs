//! Pretraining of micro vision transformers on procedural images.

use anyhow::Result;
use candle_core::{DType, Tensor};
use serde::Deserialize;

pub mod distil;
mod ops;
pub mod probe;
pub mod procedural;
mod resample;
pub mod source;
pub mod vit;

/// Mean and standard deviation of each channel, for pixels in [0, 1].
#[derive(Clone, Copy, Deserialize)]
pub struct Normalisation {
    pub mean: [f32; 3],
    pub std: [f32; 3],
}

impl Normalisation {
    /// What the micro networks expect.
    pub const MICRO: Self = Self { mean: [0.5; 3], std: [0.5; 3] };

    /// Grey images (N, S, S) become normalised colour images (N, 3, S, S).
    pub fn apply(&self, images: &Tensor) -> Result<Tensor> {
        let channel =
            |c: usize| images.affine(1.0 / f64::from(self.std[c]), f64::from(-self.mean[c] / self.std[c]));
        Ok(Tensor::stack(&[channel(0)?, channel(1)?, channel(2)?], 1)?)
    }
}

/// Bytes become numbers in [0, 1].
pub fn unit_pixels(images: &Tensor) -> Result<Tensor> {
    Ok((images.to_dtype(DType::F32)? / 255.0)?)
}
