//! Computation of networks' outputs for recorded images, and comparison with recorded outputs.

use cdl_core::{
    candle_core::{DType, Device, Tensor},
    error::Result,
    system::device::Precision,
    traits::{Backbone, Injection, Normalization, Provenance, Taps},
    vit::{Vit, VitOptions, VitWeights},
};

/// Opens the device that `CDL_TEST_DEVICE` names, by default the CPU.
pub fn device() -> Device {
    let name = std::env::var("CDL_TEST_DEVICE").unwrap_or_else(|_| "cpu".into());
    cdl_core::system::device::open(&name, Precision::Float32).expect("CDL_TEST_DEVICE")
}

/// Builds a network with all its blocks for images of side `image_size`.
pub fn vit(
    weights: &VitWeights,
    heads: Option<usize>,
    image_size: usize,
    normalization: Normalization,
) -> Result<Vit> {
    let options = VitOptions {
        heads,
        depth: None,
        image_size,
        normalization,
        checkpoint_blocks: false,
        precision: Precision::Float32,
    };
    Vit::new("vit", weights, &options, Provenance::of_bytes("recorded", &[]), &device())
}

/// Converts images of bytes to values from 0 to 1.
pub fn pixels(images: &Tensor) -> Result<Tensor> {
    Ok((images.to_dtype(DType::F32)? / 255.0)?.to_device(&device())?)
}

/// Computes all tokens after the final norm, `(B, N, D)`.
pub fn tokens(vit: &Vit, pixels: &Tensor, injection: &Injection) -> Result<Tensor> {
    let taps = Taps { blocks: [].into(), norm: true };
    Ok(vit.forward(pixels, injection, &taps)?.norm.expect("norm"))
}

/// Returns `‖a - b‖ / ‖b‖` in float64. If `b` is zero, `a` must be zero too.
pub fn difference(a: &Tensor, b: &Tensor) -> Result<f64> {
    if a.dims() != b.dims() {
        return Ok(f64::INFINITY);
    }
    let flat = |t: &Tensor| t.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>();
    let (a, b) = (flat(a)?, flat(b)?);
    let apart = a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
    let size = b.iter().map(|b| b * b).sum::<f64>().sqrt();
    Ok(if apart == 0.0 { 0.0 } else { apart / size })
}
