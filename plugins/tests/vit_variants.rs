//! The forms that ViT checkpoints come in, each against timm's own tokens: half-precision files, LayerScale, register
//! tokens with and without positions, and position embeddings resampled to a larger and to a smaller image.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::{collections::HashMap, path::Path};

use cdl_core::{
    Backbone, Features, Injection, Kv, Normalization, Result, Taps,
    candle_core::{DType, Device, IndexOp, Tensor, safetensors},
    hub::Provenance,
    vit::{Vit, VitOptions, VitWeights},
};

/// Far above what float32 arithmetic loses here (about 5e-7), and below the effect of a GELU by tanh (1e-4) or of
/// another eps in the norms (4e-4).
const TOLERANCE: f64 = 5e-5;

/// One network with what timm computed for it.
struct Variant {
    name: &'static str,
    vit: Vit,
    pixels: Tensor,
    expected: HashMap<String, Tensor>,
}

impl Variant {
    fn read(name: &'static str) -> Result<Self> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vit");
        let expected = safetensors::load(dir.join(format!("{name}.expected.safetensors")), &Device::Cpu)?;
        let images = &expected["images"];
        let options = VitOptions {
            heads: Some(2),
            depth: None,
            image_size: images.dim(2)?,
            normalization: Normalization::NONE,
            checkpoint_blocks: false,
        };
        let weights = VitWeights::read(&dir.join(format!("{name}.safetensors")), None)?;
        let vit = Vit::new("vit", &weights, &options, Provenance::of_bytes("fixture", &[]), &Device::Cpu)?;
        let pixels = (images.to_dtype(DType::F32)? / 255.0)?;
        Ok(Self { name, vit, pixels, expected })
    }

    /// Compares every token with `key`, and the CLS token also when nothing else is asked for.
    fn compare(&self, injection: &Injection, key: &str) -> Result<()> {
        let expected = &self.expected[key];
        let taps = Taps { blocks: [].into(), norm: true };
        let Features { cls, norm, .. } = self.vit.forward(&self.pixels, injection, &taps)?;
        let norm = norm.expect("norm");
        let alone = self.vit.forward(&self.pixels, injection, &Taps::none())?.cls;
        let error = difference(&norm, expected)?;
        let alone_error = difference(&alone, &expected.i((.., 0))?)?;
        println!("vit {} {key} {error:.1e}, CLS alone {alone_error:.1e}", self.name);
        assert!(error < TOLERANCE, "{} {key}: {error:e}", self.name);
        assert!(alone_error < TOLERANCE, "{} {key}, CLS alone: {alone_error:e}", self.name);
        assert_eq!(difference(&cls, &norm.i((.., 0))?)?, 0.0, "{} {key}: CLS is not token 0", self.name);
        Ok(())
    }
}

/// `‖a - b‖ / ‖b‖` in float64; where `b` is zero, `a` must be too.
fn difference(a: &Tensor, b: &Tensor) -> Result<f64> {
    if a.dims() != b.dims() {
        return Ok(f64::INFINITY);
    }
    let flat = |t: &Tensor| t.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>();
    let (a, b) = (flat(a)?, flat(b)?);
    let apart = a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
    let size = b.iter().map(|b| b * b).sum::<f64>().sqrt();
    Ok(if apart == 0.0 { 0.0 } else { apart / size })
}

#[test]
fn layer_scale_in_bfloat16_and_a_larger_image() -> Result<()> {
    Variant::read("layer_scale")?.compare(&Injection::none(), "tokens")
}

#[test]
fn registers_without_positions_and_a_smaller_image() -> Result<()> {
    Variant::read("registers")?.compare(&Injection::none(), "tokens")
}

#[test]
fn registers_with_positions_in_float16() -> Result<()> {
    Variant::read("registers_embed")?.compare(&Injection::none(), "tokens")
}

#[test]
fn additions_reach_the_key_and_value_of_cls() -> Result<()> {
    let variant = Variant::read("layer_scale")?;
    let vector = |name: &str| variant.expected[name].reshape((1, 1, ()));
    let mut injection = Injection::none();
    injection.block_mut(0).cls_add = Some(Kv { k: vector("add_k")?, v: vector("add_v")? });
    variant.compare(&injection, "tokens_cls_add")
}
