//! Separable bicubic resampling as a product with a matrix.

use candle_core::{Device, Result, Tensor};

/// Resamples square maps: `maps` (N, from, from) become (N, to, to).
pub fn resample(maps: &Tensor, to: usize) -> Result<Tensor> {
    let from = maps.dim(2)?;
    let weights = weights(from, to, maps.device())?;
    let rows = maps.broadcast_matmul(&weights.t()?)?; // (N, from, to)
    weights.broadcast_matmul(&rows) // (N, to, to)
}

/// The (to, from) matrix whose rows weigh the old positions for every new one. Shrinking widens the kernel, so that it
/// does not alias.
fn weights(from: usize, to: usize, device: &Device) -> Result<Tensor> {
    let ratio = from as f32 / to as f32;
    let stretch = ratio.max(1.0);
    let mut weights = Vec::with_capacity(to * from);
    for new in 0..to {
        let centre = (new as f32 + 0.5) * ratio - 0.5;
        let row: Vec<f32> = (0..from).map(|old| bicubic((old as f32 - centre) / stretch)).collect();
        let total: f32 = row.iter().sum();
        weights.extend(row.iter().map(|weight| weight / total));
    }
    Tensor::from_vec(weights, (to, from), device)
}

/// Keys' cubic convolution kernel with a = -1/2.
fn bicubic(distance: f32) -> f32 {
    let x = distance.abs();
    if x < 1.0 {
        (1.5 * x - 2.5) * x * x + 1.0
    } else if x < 2.0 {
        ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    } else {
        0.0
    }
}
