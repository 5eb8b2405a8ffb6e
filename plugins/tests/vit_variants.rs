//! Comparison of variants of ViT checkpoints with the tokens of timm: half-precision files, LayerScale, register tokens
//! with and without positions, and position embeddings resampled to a larger and to a smaller image.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::{collections::HashMap, path::Path};

use cdl_core::{
    candle_core::{Device, IndexOp, Tensor, safetensors},
    error::Result,
    traits::{Backbone, Features, Injection, Kv, Normalization, Taps},
    vit::{Vit, VitWeights},
};
use common::networks::{self, difference};

/// Tolerance far above float32 rounding errors (about 5e-7), and below the effect of a tanh GELU (1e-4) or of another
/// epsilon in the norms (4e-4).
const TOLERANCE: f64 = 5e-5;

/// Network with the tokens that timm computed.
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
        let weights = VitWeights::read(&dir.join(format!("{name}.safetensors")), None)?;
        let vit = networks::vit(&weights, Some(2), images.dim(2)?, Normalization::NONE)?;
        let pixels = networks::pixels(images)?;
        Ok(Self { name, vit, pixels, expected })
    }

    /// Compares every token with `key`, and the CLS token also without taps.
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
    injection.block_mut(0).cls_add = Some(Kv::new(vector("add_k")?, vector("add_v")?));
    variant.compare(&injection, "tokens_cls_add")
}
