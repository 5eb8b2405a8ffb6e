//! Comparison of multiply-adds by formula with published figures, sums by hand, and the count of the fused blocks. It
//! is the only test of its process, because the counter is global.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use cdl_core::{
    candle_core::{Device, Tensor, Var},
    error::Result,
    kernels::fused::multiply_adds,
    rng::Rng,
    system::device::Precision,
    traits::{
        Backbone, BlockLengths, Injection, Kv, Lengths, Macs, Normalization, Provenance, Taps, Transformer,
    },
    vit::{Vit, VitOptions, VitSizes, VitWeights},
};

fn published(width: usize, depth: usize) -> Transformer {
    Transformer { width, depth, hidden: 4 * width, tokens: 197, patches: 196, patch_size: 16 }
}

fn vit(depth: usize) -> Result<Vit> {
    let sizes = VitSizes { width: 32, depth, patch_size: 8, image_size: 32 };
    let weights = VitWeights::random("small", sizes)?;
    let options = VitOptions {
        heads: Some(4),
        depth: None,
        image_size: 32,
        normalization: Normalization::NONE,
        checkpoint_blocks: false,
        precision: Precision::Float32,
    };
    Vit::new("vit", &weights, &options, Provenance::of_bytes("small", b"small"), &Device::Cpu)
}

/// Counts the multiply-accumulate operations of a forward pass over two images with all outputs tapped, and of its
/// backward pass.
fn counted(vit: &Vit, injection: &Injection) -> Result<Macs> {
    let pixels = Rng::new(1).uniform(&[2, 3, 32, 32], 0.0, 1.0, &Device::Cpu)?;
    let start = multiply_adds();
    let features = vit.forward(&pixels, injection, &Taps { norm: true, ..Taps::none() })?;
    let between = multiply_adds();
    features.norm.expect("tapped").sqr()?.sum_all()?.backward()?;
    Ok(Macs { forward: (between - start) / 2, backward: (multiply_adds() - between) / 2 })
}

#[test]
fn multiply_adds_match_published_figures_and_counts() -> Result<()> {
    // Figures of the published sizes at 224 px, patch 16, in 10^9.
    for (width, depth, known) in [(192, 12, 1.26), (384, 12, 4.6), (768, 12, 17.6), (1024, 24, 61.6)] {
        let Macs { forward, backward } = published(width, depth).macs(&Lengths::default());
        assert!((forward as f64 / 1e9 - known).abs() < 0.02 * known, "{width}: {forward}");
        assert_eq!(backward, 0, "nothing is trained");
    }

    // ViT-Tiny by hand: patches, then twelve times (queries, keys and values; scores; sums; projection; MLP).
    let block = 197 * 192 * 576 + 197 * 197 * 192 + 197 * 197 * 192 + 197 * 192 * 192 + 2 * 197 * 192 * 768;
    let tiny = published(192, 12).macs(&Lengths::default());
    assert_eq!(tiny.forward, 196 * 768 * 192 + 12 * block);

    // Ten trained prompt rows in block 2 (from 0): ten more keys in its forward pass. The backward pass ends in this
    // block at the rows; in later blocks it costs as much as the forward pass, with twice the attention.
    let rows = BlockLengths { rows: 10, cls_add: false, trained: true };
    let blocks = vec![BlockLengths::default(), BlockLengths::default(), rows];
    let prompted = published(192, 12).macs(&Lengths { blocks, ..Lengths::default() });
    assert_eq!(prompted.forward, tiny.forward + 2 * 197 * 10 * 192);
    let down_to_rows =
        2 * 197 * 192 * 768 + 197 * 192 * 192 + 197 * 207 * 192 /* dA */ + 2 * 197 * 10 * 192 /* dV, dK */;
    assert_eq!(prompted.backward, down_to_rows + 9 * (block + 2 * 197 * 197 * 192));

    // Compare with the counter: forward passes, and the backward pass of three whole blocks, by which `deep` is deeper.
    let (shallow, deep) = (vit(2)?, vit(5)?);
    let mut rng = Rng::new(2);
    let mut var = |rows: usize| -> Result<Tensor> {
        Ok(Var::from_tensor(&rng.uniform(&[1, rows, 32], -1.0, 1.0, &Device::Cpu)?)?.as_tensor().clone())
    };
    let kv = Kv::new(var(3)?, var(3)?);
    let mut rows = Injection::none();
    rows.block_mut(0).prefix = Some(kv.clone());
    rows.block_mut(0).suffix = Some(Kv::new(var(2)?, var(2)?));
    rows.block_mut(1).prefix = Some(kv);
    let mut cls = Injection::none();
    cls.block_mut(0).cls_add = Some(Kv::new(var(1)?, var(1)?));
    let tokens = Injection { tokens: Some(var(4)?), ..Injection::none() };
    let lengths = rows.lengths()?;
    assert_eq!(lengths.blocks[0], BlockLengths { rows: 5, cls_add: false, trained: true });
    assert_eq!(tokens.lengths()?, Lengths { tokens: 4, trained_tokens: true, blocks: Vec::new() });
    for injection in [rows, cls, tokens] {
        let lengths = injection.lengths()?;
        let by_formula = [&shallow, &deep].map(|vit| vit.macs(&lengths));
        let [small, large] = [counted(&shallow, &injection)?, counted(&deep, &injection)?];
        assert_eq!(by_formula.map(|macs| macs.forward), [small.forward, large.forward], "{lengths:?}");
        let three_blocks = by_formula[1].backward - by_formula[0].backward;
        assert_eq!(three_blocks, large.backward - small.backward, "{lengths:?}");
    }
    Ok(())
}
