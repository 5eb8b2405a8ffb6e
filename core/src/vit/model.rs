//! The frozen vision transformer (Dosovitskiy et al., arXiv 2010.11929).
//!
//! Images become tokens, CLS first; each of the pre-norm blocks adds `proj(attention(norm1(x)))` and then `mlp(norm2(x))`; a
//! layer norm ends the network. [`Vit::encode`] is the way through the blocks, and [`Backbone::forward`] the whole.
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

/// Options of a [`Vit`] besides its weights; all but `image_size` have a default.
#[derive(Debug, Clone, Default)]
pub struct VitOptions {
    /// Attention heads; `None` takes the checkpoint's configuration, else the usual number for this width.
    pub heads: Option<usize>,
    /// Keep only the first blocks (and the final norm).
    pub depth: Option<usize>,
    /// Side of the input image; position embeddings are resampled to it.
    pub image_size: usize,
    /// Normalisation of pixels.
    pub normalization: Normalization,
    /// Compute a block's intermediate values again in the backward pass instead of keeping them.
    pub checkpoint_blocks: bool,
    /// Precision of weights and activations.
    pub precision: Precision,
}

/// A plain ViT with frozen weights.
///
/// Gradients reach injected prompts and tokens only. LayerScale, where the checkpoint has it, is folded into the
/// projections before it, since both are frozen: `γ (x Wᵀ + b) = x (γ W)ᵀ + γ b`.
pub struct Vit {
    pub(super) spec: BackboneSpec,
    blocks: Blocks,
    pub(super) norm: Norm,
    /// Epsilon of every layer norm.
    pub(super) eps: f64,
    sizes: Transformer,
}

/// The two ways of computing the blocks.
enum Blocks {
    Fused(FusedBlocks),
    Taped(TapedBlocks),
}

impl Vit {
    /// Builds the network.
    ///
    /// # Errors
    /// Weights that are missing, of the wrong shape, or do not fit `options`; each message names the tensor.
    pub fn new(
        plugin: &str,
        weights: &VitWeights,
        options: &VitOptions,
        provenance: Provenance,
        device: &Device,
    ) -> Result<Self> {
        let geometry = weights.geometry()?;
        let depth = weights.depth(&geometry, options.depth)?;
        let heads = weights.heads(&geometry, options.heads)?;
        let grid = weights.grid(&geometry, options.image_size)?;
        let own_size = geometry.grid * geometry.patch_size;
        if options.image_size >= 2 * own_size {
            tracing::warn!(
                "{}: images of {} px, where the network was made for {own_size} (stream.transform.image_size)",
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
        // Every thread has a stream of its own on a GPU: another one may compute with these weights.
        device.synchronize()?;
        Ok(Self { spec, blocks, norm, eps, sizes })
    }

    /// Runs images `(B, 3, S, S)` through all `blocks`: the last one's output before the final norm, and those of tapped
    /// blocks. The last one's has all tokens if `taps` asks for them, else CLS and the injected tokens.
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
        // A run of blocks ends with every tapped one.
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

    /// The frozen layers before the final norm.
    pub(super) fn layers(&self) -> Result<(Stem, Vec<Block>)> {
        Ok(match &self.blocks {
            Blocks::Fused(blocks) => blocks.layers()?,
            Blocks::Taped(blocks) => blocks.layers()?,
        })
    }
}

/// Settings of the blocks of this network.
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
