//! The frozen vision transformer (Dosovitskiy et al., arXiv 2010.11929): pre-norm blocks, timm's tensor names.

mod composed;
mod config;
mod fast;
mod names;
mod portable;
mod position;
mod prompts;
mod pytorch;
mod run;
#[cfg(test)]
mod tests;
mod weights;

pub use position::resample;
pub use weights::{Geometry, VitSizes, VitWeights};

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};

use self::{composed::Composed, fast::Fast, prompts::prompts, run::Setting};
use crate::{
    Backbone, BackboneSpec, Features, Injection, Normalization, Portable, Result, Taps,
    cost::{Lengths, Macs, Transformer},
    device::Precision,
    hub::Provenance,
    ops,
};

/// What a [`Vit`] is built with besides its weights.
#[derive(Debug, Clone)]
pub struct VitOptions {
    /// Attention heads; `None` takes the checkpoint's configuration, else what networks of this width have.
    pub heads: Option<usize>,
    /// Keep only the first blocks (and the final norm).
    pub depth: Option<usize>,
    /// Side of the input image; position embeddings are resampled to it.
    pub image_size: usize,
    /// Applied to pixels first.
    pub normalization: Normalization,
    /// Compute a block's intermediate values again in the backward pass instead of keeping them.
    pub checkpoint_blocks: bool,
    /// Numbers of weights and activations.
    pub precision: Precision,
}

/// A plain ViT with frozen weights.
///
/// Gradients reach injected prompts and tokens only. LayerScale, where the checkpoint has it, is folded into the
/// projections before it, since both are frozen: `γ (x Wᵀ + b) = x (γ W)ᵀ + γ b`.
pub struct Vit {
    spec: BackboneSpec,
    body: Body,
    norm: Norm,
    /// Of every layer norm.
    eps: f64,
    sizes: Transformer,
}

/// The way from pixels to the last block's output.
enum Body {
    /// One operation of our own.
    Fast(Fast),
    /// Composed of tensor operations.
    Composed(Composed),
}

/// `x Wᵀ + b` with `weight` `(O, I)`.
#[derive(Clone)]
struct Linear {
    weight: Tensor,
    bias: Tensor,
}

/// A layer norm's scale and shift.
#[derive(Clone)]
struct Norm {
    gamma: Tensor,
    beta: Tensor,
}

/// The frozen layers of one block.
#[derive(Clone)]
struct Block {
    norm1: Norm,
    qkv: Linear,
    proj: Linear,
    norm2: Norm,
    fc1: Linear,
    fc2: Linear,
}

impl Linear {
    fn to_dtype(&self, dtype: DType) -> Result<Self> {
        Ok(Self { weight: self.weight.to_dtype(dtype)?, bias: self.bias.to_dtype(dtype)? })
    }
}

impl Block {
    /// The same with matrices as `dtype`; layer norms stay, they compute in float32 whatever comes in.
    fn to_dtype(&self, dtype: DType) -> Result<Self> {
        Ok(Self {
            norm1: self.norm1.clone(),
            qkv: self.qkv.to_dtype(dtype)?,
            proj: self.proj.to_dtype(dtype)?,
            norm2: self.norm2.clone(),
            fc1: self.fc1.to_dtype(dtype)?,
            fc2: self.fc2.to_dtype(dtype)?,
        })
    }
}

/// What comes before the blocks.
#[derive(Clone)]
struct Stem {
    /// `(D, 3 p p)`: the patch convolution as a linear layer.
    patch: Linear,
    /// CLS and register tokens with their position embeddings, `(1, 1 + R, D)`.
    prefix: Tensor,
    /// Position embeddings of the patches, `(1, patches, D)`.
    positions: Tensor,
}

impl Stem {
    fn to_dtype(&self, dtype: DType) -> Result<Self> {
        Ok(Self {
            patch: self.patch.to_dtype(dtype)?,
            prefix: self.prefix.to_dtype(dtype)?,
            positions: self.positions.to_dtype(dtype)?,
        })
    }
}

/// The last block's output before the final norm, and those of tapped blocks.
struct Outputs {
    /// All tokens if the taps want the norm's or the last block's, else CLS and the injected ones.
    last: Tensor,
    tapped: BTreeMap<usize, Tensor>,
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
        let linear = |name: &str, outputs: usize, inputs: usize| -> Result<Linear> {
            let (weight, bias) = weights.linear(name, outputs, inputs, device)?;
            Ok(Linear { weight, bias })
        };
        let norm = |name: &str| -> Result<Norm> {
            let (gamma, beta) = weights.norm(name, geometry.width, device)?;
            Ok(Norm { gamma, beta })
        };
        let d = geometry.width;
        let block = |i: usize| -> Result<Block> {
            let name = |part: &str| format!("blocks.{i}.{part}");
            let scaled = |part: &str, scale: &str, inputs: usize| -> Result<Linear> {
                let Linear { weight, bias } = linear(&name(part), d, inputs)?;
                let (weight, bias) = weights.scaled(&name(scale), weight, bias, device)?;
                Ok(Linear { weight, bias })
            };
            Ok(Block {
                norm1: norm(&name("norm1"))?,
                qkv: linear(&name("attn.qkv"), 3 * d, d)?,
                proj: scaled("attn.proj", "ls1.gamma", d)?,
                norm2: norm(&name("norm2"))?,
                fc1: linear(&name("mlp.fc1"), geometry.hidden, d)?,
                fc2: scaled("mlp.fc2", "ls2.gamma", geometry.hidden)?,
            })
        };
        let (prefix, positions) = weights.positions(&geometry, grid, device)?;
        let (patch, patch_bias) = weights.patch_embedding(&geometry, device)?;
        let stem = Stem { patch: Linear { weight: patch, bias: patch_bias }, prefix, positions };
        let spec = BackboneSpec {
            plugin: plugin.into(),
            width: d,
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
        let fast = device.is_cpu()
            && stem.patch.weight.dtype() == DType::F32
            && ops::fused::suits(d, geometry.hidden, heads);
        let (blocks, eps) = ((0..depth).map(block), weights.eps());
        let body = match fast {
            true => Body::Fast(Fast::new(stem, blocks, &spec, eps, options.checkpoint_blocks)?),
            false => {
                let setting = Setting { heads, eps, recompute: options.checkpoint_blocks };
                let dtype = options.precision.dtype();
                let blocks = blocks.map(|block| block?.to_dtype(dtype)).collect::<Result<_>>()?;
                Body::Composed(Composed::new(stem.to_dtype(dtype)?, blocks, &spec, setting)?)
            }
        };
        let norm = norm("norm")?;
        // Every thread has a stream of its own on a GPU: another one may compute with these weights.
        device.synchronize()?;
        Ok(Self { spec, body, norm, eps, sizes })
    }
}

impl Backbone for Vit {
    fn spec(&self) -> &BackboneSpec {
        &self.spec
    }

    fn forward(&self, pixels: &Tensor, injection: &Injection, taps: &Taps) -> Result<Features> {
        let Outputs { last, tapped } = match &self.body {
            Body::Fast(body) => body.forward(pixels, injection, taps)?,
            Body::Composed(body) => body.forward(pixels, injection, taps)?,
        };
        let x = ops::layer_norm(&last, &self.norm.gamma, &self.norm.beta, self.eps)?;
        let tokens = match injection.token_count()? {
            0 => None,
            extra => Some(x.narrow(1, x.dim(1)? - extra, extra)?.contiguous()?),
        };
        Ok(Features {
            cls: x.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?,
            tokens,
            blocks: tapped,
            norm: taps.norm.then_some(x),
        })
    }

    fn macs(&self, lengths: &Lengths) -> Macs {
        self.sizes.macs(lengths)
    }

    fn weights(&self) -> Result<Vec<(String, Tensor)>> {
        let (stem, blocks) = match &self.body {
            Body::Fast(body) => body.layers()?,
            Body::Composed(body) => body.layers(),
        };
        let mut all = vec![("prefix".to_string(), stem.prefix), ("positions".into(), stem.positions)];
        let mut linear = |name: String, layer: Linear| {
            all.push((format!("{name}.weight"), layer.weight));
            all.push((format!("{name}.bias"), layer.bias));
        };
        linear("patch_embed.proj".into(), stem.patch);
        let norm = |layer: Norm| Linear { weight: layer.gamma, bias: layer.beta };
        for (i, block) in blocks.into_iter().enumerate() {
            linear(format!("blocks.{i}.norm1"), norm(block.norm1));
            linear(format!("blocks.{i}.attn.qkv"), block.qkv);
            linear(format!("blocks.{i}.attn.proj"), block.proj);
            linear(format!("blocks.{i}.norm2"), norm(block.norm2));
            linear(format!("blocks.{i}.mlp.fc1"), block.fc1);
            linear(format!("blocks.{i}.mlp.fc2"), block.fc2);
        }
        linear("norm".into(), norm(self.norm.clone()));
        Ok(all)
    }

    fn portable(&self) -> Result<Option<Portable>> {
        self.checkpoint().map(Some)
    }
}
