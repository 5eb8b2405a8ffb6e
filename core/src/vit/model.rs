//! Frozen vision transformer (Dosovitskiy et al., arXiv 2010.11929).
//!
//! Images become tokens, CLS first. Each pre-norm block adds `proj(attention(norm1(x)))` and then `mlp(norm2(x))`. A
//! final layer norm ends the network. [`Vit::encode`] runs the blocks, and [`Backbone::forward`] the whole network.
//! [`cdl_kernels`] computes the blocks: [`FusedBlocks`] on the CPU in float32, [`TapedBlocks`] everywhere else.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};

use crate::{
    error::Result,
    system::device::Precision,
    traits::{
        Backbone, BackboneSpec, Features, Injection, Lengths, Macs, Normalization, Portable, Provenance,
        Taps, Transformer,
    },
    vit::{VitWeights, prompts::prompts},
};
use cdl_kernels::{
    TapedBlocks,
    blocks::{BlockRunner, Reads, Settings},
    fused::{self, FusedBlocks, SimdLevel},
    layer_norm,
    layers::{Block, Norm, Stem},
};

/// Options of a [`Vit`] besides its weights. `image_size` must be set; the default of the other options is usable.
#[derive(Debug, Clone, Default)]
pub struct VitOptions {
    /// Number of attention heads. `None`: the number in the checkpoint's configuration, or else the usual number for
    /// this width.
    pub heads: Option<usize>,
    /// Number of blocks to keep, counted from the first; the final norm is always kept. `None`: all blocks.
    pub depth: Option<usize>,
    /// Side of the input image in pixels. Position embeddings are resampled to this size.
    pub image_size: usize,
    /// Normalisation of pixels.
    pub normalization: Normalization,
    /// Whether the backward pass recomputes the activations of each block instead of storing them.
    pub checkpoint_blocks: bool,
    /// Precision of weights and activations.
    pub precision: Precision,
}

/// Plain ViT with frozen weights.
///
/// Only injected prompts and tokens receive gradients. LayerScale, if the checkpoint has it, is folded into the
/// preceding projections, since both are frozen: `γ (x Wᵀ + b) = x (γ W)ᵀ + γ b`.
pub struct Vit {
    pub(super) spec: BackboneSpec,
    blocks: Blocks,
    pub(super) norm: Norm,
    /// Epsilon of every layer norm.
    pub(super) eps: f64,
    sizes: Transformer,
}

/// Implementation of the blocks.
enum Blocks {
    Fused(FusedBlocks),
    Taped(TapedBlocks),
}

impl Vit {
    /// Builds the network.
    ///
    /// # Errors
    /// A tensor that is missing, has the wrong shape, or does not fit `options`. The message contains its name.
    pub fn new(
        plugin: &str,
        weights: &VitWeights,
        options: &VitOptions,
        provenance: Provenance,
        device: &Device,
    ) -> Result<Self> {
        let geometry = weights.geometry()?;
        let depth = weights.depth(&geometry, options.depth)?;
        let (heads, heads_from) = weights.heads(&geometry, options.heads)?;
        let grid = weights.grid(&geometry, options.image_size)?;
        let own_size = geometry.grid * geometry.patch_size;
        if options.image_size >= 2 * own_size || 2 * options.image_size <= own_size {
            tracing::warn!(
                "{}: images have {} px, but the network was trained on {own_size} px (stream.transform.image_size)",
                provenance.source,
                options.image_size,
            );
        }
        let stem = weights.stem(&geometry, grid, device)?;
        let blocks = (0..depth).map(|index| weights.block(&geometry, index, device));
        let spec = BackboneSpec {
            plugin: plugin.into(),
            width: geometry.width,
            depth,
            heads,
            heads_from,
            patch_size: geometry.patch_size,
            image_size: options.image_size,
            patches: grid * grid,
            normalization: options.normalization,
            provenance,
        };
        let sizes = Transformer {
            hidden: geometry.hidden,
            tokens: stem.prefix.dim(1)? + spec.patches,
            ..Transformer::plain(&spec)
        };
        let eps = weights.eps();
        let settings = settings(&spec, eps, options.checkpoint_blocks);
        let in_panels = device.is_cpu()
            && stem.patch.weight.dtype() == DType::F32
            && fused::suits(geometry.width, geometry.hidden, heads);
        let blocks = match in_panels {
            true => Blocks::Fused(FusedBlocks::new(&stem, blocks, settings, SimdLevel::best())?),
            false => Blocks::Taped(TapedBlocks::new(&stem, blocks, settings, options.precision.dtype())?),
        };
        let norm = weights.norm("norm", geometry.width, device)?;
        // On a GPU every thread has its own CUDA stream, and another thread may compute with these weights.
        device.synchronize()?;
        Ok(Self { spec, blocks, norm, eps, sizes })
    }

    /// Runs images `(B, 3, S, S)` through all `blocks`. Returns the output of the last block before the final norm, and
    /// the outputs of tapped blocks. The output of the last block has all tokens if `taps` requests them, otherwise CLS
    /// and the injected tokens.
    fn encode<R: BlockRunner>(
        &self,
        blocks: &R,
        pixels: &Tensor,
        injection: &Injection,
        taps: &Taps,
    ) -> Result<(Tensor, BTreeMap<usize, Tensor>)> {
        let (depth, dtype) = (self.spec.depth, pixels.dtype());
        let last = depth - 1;
        let prompts = prompts(injection, depth, pixels.dim(0)?, blocks.dtype())?;
        let mut x = blocks.embed(pixels, &prompts)?; // (B, N, D)
        // Each tapped block ends a run of blocks.
        let mut start = 0;
        let mut tapped = BTreeMap::new();
        for &end in taps.blocks.range(..last) {
            let y = blocks.run(start..end + 1, x, &prompts, Reads::All)?; // (B, N, D)
            tapped.insert(end, y.to_dtype(dtype)?);
            (start, x) = (end + 1, y.into());
        }
        let reads = match taps.norm || taps.blocks.contains(&last) {
            true => Reads::All,
            false => Reads::ClsAndLast { extra: injection.token_count()? },
        };
        let y = blocks.run(start..depth, x, &prompts, reads)?; // (B, N or 1 + K, D)
        if taps.blocks.contains(&last) {
            tapped.insert(last, y.to_dtype(dtype)?);
        }
        Ok((y.to_dtype(dtype)?, tapped))
    }

    /// Returns the frozen layers before the final norm.
    pub(super) fn layers(&self) -> Result<(Stem, Vec<Block>)> {
        Ok(match &self.blocks {
            Blocks::Fused(blocks) => blocks.layers()?,
            Blocks::Taped(blocks) => blocks.layers()?,
        })
    }
}

/// Returns the settings of the network's blocks.
fn settings(spec: &BackboneSpec, eps: f64, recompute: bool) -> Settings {
    let normalize = match spec.normalization {
        Normalization::NONE => None,
        Normalization { mean, std } => Some((mean, std.map(|s| 1.0 / s))),
    };
    Settings { heads: spec.heads, patch_size: spec.patch_size, eps, normalize, recompute }
}

impl Backbone for Vit {
    fn spec(&self) -> &BackboneSpec {
        &self.spec
    }

    fn forward(&self, pixels: &Tensor, injection: &Injection, taps: &Taps) -> Result<Features> {
        let (x, blocks) = match &self.blocks {
            Blocks::Fused(blocks) => self.encode(blocks, pixels, injection, taps)?,
            Blocks::Taped(blocks) => self.encode(blocks, pixels, injection, taps)?,
        };
        let x = layer_norm(&x, &self.norm.gamma, &self.norm.beta, self.eps)?;
        let tokens = match injection.token_count()? {
            0 => None,
            extra => Some(x.narrow(1, x.dim(1)? - extra, extra)?.contiguous()?), // (B, K, D)
        };
        Ok(Features {
            cls: x.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?, // (B, D)
            tokens,
            blocks,
            norm: taps.norm.then_some(x),
        })
    }

    fn macs(&self, lengths: &Lengths) -> Macs {
        self.sizes.macs(lengths)
    }

    fn weights(&self) -> Result<Vec<(String, Tensor)>> {
        self.named_weights()
    }

    fn portable(&self) -> Result<Option<Portable>> {
        self.checkpoint().map(Some)
    }
}
