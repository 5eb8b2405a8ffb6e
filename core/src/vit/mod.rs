//! The frozen vision transformer (Dosovitskiy et al., arXiv 2010.11929): pre-norm blocks, timm's tensor names.

mod position;
mod weights;

pub use position::resample;
pub use weights::{Geometry, VitWeights};

use candle_core::{D, Device, Tensor};

use crate::{
    Backbone, BackboneSpec, BlockInjection, Features, Injection, Normalization, Result, Taps,
    hub::Provenance, injection::Kv, ops,
};

const EPS: f64 = 1e-6;

/// What a [`Vit`] is built with besides its weights.
#[derive(Debug, Clone)]
pub struct VitOptions {
    /// Attention heads; `None` takes the checkpoint's configuration, else heads of width 64.
    pub heads: Option<usize>,
    /// Keep only the first blocks (and the final norm).
    pub depth: Option<usize>,
    /// Side of the input image; position embeddings are resampled to it.
    pub image_size: usize,
    /// Applied to pixels first.
    pub normalization: Normalization,
}

/// A plain ViT with frozen weights.
///
/// Gradients reach injected prompts and tokens only. LayerScale, where the checkpoint has it, is folded into the
/// projections before it, since both are frozen: `γ (x Wᵀ + b) = x (γ W)ᵀ + γ b`.
pub struct Vit {
    spec: BackboneSpec,
    /// `(D, 3 p p)`: the patch convolution as a linear layer.
    patch: Linear,
    /// CLS and register tokens with their position embeddings, `(1, 1 + R, D)`.
    prefix: Tensor,
    /// Position embeddings of the patches, `(1, patches, D)`.
    positions: Tensor,
    blocks: Vec<Block>,
    norm: Norm,
    /// Per channel, `(1, 3, 1, 1)`; `None` when pixels go in as they are.
    normalize: Option<(Tensor, Tensor)>,
}

struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::linear(x, &self.weight, Some(&self.bias))
    }
}

struct Norm {
    gamma: Tensor,
    beta: Tensor,
}

impl Norm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::layer_norm(x, &self.gamma, &self.beta, EPS)
    }
}

struct Block {
    norm1: Norm,
    qkv: Linear,
    proj: Linear,
    norm2: Norm,
    fc1: Linear,
    fc2: Linear,
    heads: usize,
}

impl Block {
    /// `x` `(B, N, D)`; only the tokens that `read` keeps leave the block.
    fn forward(&self, x: &Tensor, injection: &BlockInjection, read: &Read) -> Result<Tensor> {
        let mut qkv = self.qkv.forward(&self.norm1.forward(x)?)?;
        if let Some(add) = &injection.cls_add {
            qkv = add_to_cls(&qkv, add)?;
        }
        let extra = injected_rows(injection, x.dim(0)?)?;
        let attended = ops::attention(&qkv, extra.as_ref(), self.heads)?;
        // Keys and values come from every token, but what follows acts on each token by itself.
        let x = (read.keep(x)? + self.proj.forward(&read.keep(&attended)?)?)?;
        let hidden = ops::gelu(&self.fc1.forward(&self.norm2.forward(&x)?)?)?;
        Ok((x + self.fc2.forward(&hidden)?)?)
    }
}

/// Which tokens are still needed after a block's attention.
enum Read {
    All,
    /// CLS and the last `extra` tokens: after the last block nothing else is looked at.
    ClsAndLast {
        extra: usize,
    },
}

impl Read {
    fn keep(&self, x: &Tensor) -> Result<Tensor> {
        match *self {
            Self::All => Ok(x.clone()),
            Self::ClsAndLast { extra: 0 } => Ok(x.narrow(1, 0, 1)?),
            Self::ClsAndLast { extra } => {
                let last = x.narrow(1, x.dim(1)? - extra, extra)?;
                Ok(Tensor::cat(&[x.narrow(1, 0, 1)?, last], 1)?)
            }
        }
    }
}

/// Prefix and suffix keys and values side by side, `(B, P, 2D)`.
fn injected_rows(injection: &BlockInjection, batch: usize) -> Result<Option<Tensor>> {
    let rows = [&injection.prefix, &injection.suffix]
        .into_iter()
        .flatten()
        .map(|Kv { k, v }| {
            let (_, rows, width) = k.dims3()?;
            Ok(Tensor::cat(&[k, v], D::Minus1)?.broadcast_as((batch, rows, 2 * width))?)
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(match rows.as_slice() {
        [] => None,
        rows => Some(Tensor::cat(rows, 1)?),
    })
}

/// Adds to the key and value of token 0 in `qkv` `(B, N, 3D)`.
fn add_to_cls(qkv: &Tensor, add: &Kv) -> Result<Tensor> {
    let (batch, tokens, triple) = qkv.dims3()?;
    let kv = Tensor::cat(&[&add.k, &add.v], D::Minus1)?;
    let row = kv.pad_with_zeros(D::Minus1, triple / 3, 0)?.broadcast_as((batch, 1, triple))?;
    let cls = (qkv.narrow(1, 0, 1)? + row)?;
    Ok(Tensor::cat(&[cls, qkv.narrow(1, 1, tokens - 1)?], 1)?)
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
        let linear =
            |name: &str, outputs: usize, inputs: usize| weights.linear(name, outputs, inputs, device);
        let norm = |name: &str| -> Result<Norm> {
            let (gamma, beta) = weights.norm(name, geometry.width, device)?;
            Ok(Norm { gamma, beta })
        };
        let d = geometry.width;
        let blocks = (0..depth)
            .map(|i| {
                let name = |part: &str| format!("blocks.{i}.{part}");
                let scaled = |part: &str, scale: &str, inputs: usize| -> Result<Linear> {
                    let (weight, bias) = linear(&name(part), d, inputs)?;
                    let (weight, bias) = weights.scaled(&name(scale), weight, bias, device)?;
                    Ok(Linear { weight, bias })
                };
                let plain = |part: &str, outputs: usize| -> Result<Linear> {
                    let (weight, bias) = linear(&name(part), outputs, d)?;
                    Ok(Linear { weight, bias })
                };
                Ok(Block {
                    norm1: norm(&name("norm1"))?,
                    qkv: plain("attn.qkv", 3 * d)?,
                    proj: scaled("attn.proj", "ls1.gamma", d)?,
                    norm2: norm(&name("norm2"))?,
                    fc1: plain("mlp.fc1", geometry.hidden)?,
                    fc2: scaled("mlp.fc2", "ls2.gamma", geometry.hidden)?,
                    heads,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let (prefix, positions) = weights.positions(&geometry, grid, device)?;
        let own_size = geometry.grid * geometry.patch_size;
        if options.image_size >= 2 * own_size {
            tracing::warn!(
                "{}: images of {} px, where the network was made for {own_size} (stream.transform.image_size)",
                provenance.source,
                options.image_size,
            );
        }
        let (patch, patch_bias) = weights.patch_embedding(&geometry, device)?;
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
        let channel = |v: [f32; 3]| Tensor::new(&v, device)?.reshape((1, 3, 1, 1));
        let normalize = match options.normalization {
            Normalization::NONE => None,
            Normalization { mean, std } => Some((channel(mean)?, channel(std.map(|s| 1.0 / s))?)),
        };
        Ok(Self {
            spec,
            patch: Linear { weight: patch, bias: patch_bias },
            prefix,
            positions,
            blocks,
            norm: norm("norm")?,
            normalize,
        })
    }

    /// Pixels `(B, 3, S, S)` to CLS, registers and patches with their positions, `(B, N, D)`.
    fn embed(&self, pixels: &Tensor) -> Result<Tensor> {
        let (batch, _, size, _) = pixels.dims4()?;
        let pixels = match &self.normalize {
            None => pixels.clone(),
            Some((mean, scale)) => pixels.broadcast_sub(mean)?.broadcast_mul(scale)?,
        };
        let p = self.spec.patch_size;
        let grid = size / p;
        let patches = pixels
            .reshape(vec![batch, 3, grid, p, grid, p])?
            .permute(vec![0, 2, 4, 1, 3, 5])?
            .reshape((batch, grid * grid, 3 * p * p))?;
        let patches = self.patch.forward(&patches)?.broadcast_add(&self.positions)?;
        let (_, prefix, width) = self.prefix.dims3()?;
        Ok(Tensor::cat(&[self.prefix.broadcast_as((batch, prefix, width))?, patches], 1)?)
    }
}

impl Backbone for Vit {
    fn spec(&self) -> &BackboneSpec {
        &self.spec
    }

    fn forward(&self, pixels: &Tensor, injection: &Injection, taps: &Taps) -> Result<Features> {
        let mut x = self.embed(pixels)?;
        let extra = injection.token_count()?;
        if let Some(tokens) = &injection.tokens {
            let batch = x.dim(0)?;
            x = Tensor::cat(&[x, tokens.broadcast_as((batch, extra, self.spec.width))?], 1)?;
        }
        let nothing = BlockInjection::default();
        let mut tapped = std::collections::BTreeMap::new();
        let last = self.blocks.len() - 1;
        for (index, block) in self.blocks.iter().enumerate() {
            let everything = index < last || taps.norm || taps.blocks.contains(&index);
            let read = if everything { Read::All } else { Read::ClsAndLast { extra } };
            x = block.forward(&x, injection.blocks.get(index).unwrap_or(&nothing), &read)?;
            if taps.blocks.contains(&index) {
                tapped.insert(index, x.clone());
            }
        }
        let x = self.norm.forward(&x)?;
        let tokens = match extra {
            0 => None,
            _ => Some(x.narrow(1, x.dim(1)? - extra, extra)?),
        };
        Ok(Features {
            cls: x.narrow(1, 0, 1)?.squeeze(1)?,
            tokens,
            blocks: tapped,
            norm: taps.norm.then_some(x),
        })
    }

    fn weights(&self) -> Vec<(String, Tensor)> {
        let mut all = vec![("prefix".to_string(), self.prefix.clone())];
        all.push(("positions".into(), self.positions.clone()));
        let mut linear = |name: String, layer: &Linear| {
            all.push((format!("{name}.weight"), layer.weight.clone()));
            all.push((format!("{name}.bias"), layer.bias.clone()));
        };
        linear("patch_embed.proj".into(), &self.patch);
        for (i, block) in self.blocks.iter().enumerate() {
            linear(format!("blocks.{i}.attn.qkv"), &block.qkv);
            linear(format!("blocks.{i}.attn.proj"), &block.proj);
            linear(format!("blocks.{i}.mlp.fc1"), &block.fc1);
            linear(format!("blocks.{i}.mlp.fc2"), &block.fc2);
        }
        let mut norm = |name: String, layer: &Norm| {
            all.push((format!("{name}.weight"), layer.gamma.clone()));
            all.push((format!("{name}.bias"), layer.beta.clone()));
        };
        for (i, block) in self.blocks.iter().enumerate() {
            norm(format!("blocks.{i}.norm1"), &block.norm1);
            norm(format!("blocks.{i}.norm2"), &block.norm2);
        }
        norm("norm".into(), &self.norm);
        all
    }
}
