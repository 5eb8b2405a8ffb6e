//! The network out of tensor operations, for every device and for widths that the fast path does not take.

use std::collections::BTreeMap;

use candle_core::{D, Tensor};

use super::{Block, Linear, Norm, Outputs, Stem, injected_rows};
use crate::{BackboneSpec, BlockInjection, Injection, Normalization, Result, Taps, injection::Kv, ops};

pub(super) struct Composed {
    stem: Stem,
    blocks: Vec<Block>,
    heads: usize,
    eps: f64,
    patch_size: usize,
    /// Per channel, `(1, 3, 1, 1)`; `None` when pixels go in as they are.
    normalize: Option<(Tensor, Tensor)>,
}

impl Linear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::linear(x, &self.weight, Some(&self.bias))
    }
}

impl Norm {
    fn forward(&self, x: &Tensor, eps: f64) -> Result<Tensor> {
        ops::layer_norm(x, &self.gamma, &self.beta, eps)
    }
}

impl Block {
    /// `x` `(B, N, D)`; only the tokens that `read` keeps leave the block.
    fn forward(
        &self,
        x: &Tensor,
        (heads, eps): (usize, f64),
        injection: &BlockInjection,
        read: &Read,
    ) -> Result<Tensor> {
        let mut qkv = self.qkv.forward(&self.norm1.forward(x, eps)?)?;
        if let Some(add) = &injection.cls_add {
            qkv = add_to_cls(&qkv, add)?;
        }
        let extra = injected_rows(injection, x.dim(0)?)?;
        let attended = ops::attention(&qkv, extra.as_ref(), heads)?;
        // Keys and values come from every token, but what follows acts on each token by itself.
        let x = (read.keep(x)? + self.proj.forward(&read.keep(&attended)?)?)?;
        let hidden = ops::gelu(&self.fc1.forward(&self.norm2.forward(&x, eps)?)?)?;
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

/// Adds to the key and value of token 0 in `qkv` `(B, N, 3D)`.
fn add_to_cls(qkv: &Tensor, add: &Kv) -> Result<Tensor> {
    let (batch, tokens, triple) = qkv.dims3()?;
    let kv = Tensor::cat(&[&add.k, &add.v], D::Minus1)?;
    let row = kv.pad_with_zeros(D::Minus1, triple / 3, 0)?.broadcast_as((batch, 1, triple))?;
    let cls = (qkv.narrow(1, 0, 1)? + row)?;
    Ok(Tensor::cat(&[cls, qkv.narrow(1, 1, tokens - 1)?], 1)?)
}

impl Composed {
    pub(super) fn new(stem: Stem, blocks: Vec<Block>, spec: &BackboneSpec, eps: f64) -> Result<Self> {
        let like = &stem.patch.weight;
        let channel =
            |v: [f32; 3]| Tensor::new(&v, like.device())?.to_dtype(like.dtype())?.reshape((1, 3, 1, 1));
        let normalize = match spec.normalization {
            Normalization::NONE => None,
            Normalization { mean, std } => Some((channel(mean)?, channel(std.map(|s| 1.0 / s))?)),
        };
        Ok(Self { stem, blocks, heads: spec.heads, eps, patch_size: spec.patch_size, normalize })
    }

    pub(super) fn layers(&self) -> (Stem, Vec<Block>) {
        (self.stem.clone(), self.blocks.clone())
    }

    /// Pixels `(B, 3, S, S)` to CLS, registers and patches with their positions, `(B, N, D)`.
    fn embed(&self, pixels: &Tensor) -> Result<Tensor> {
        let (batch, _, size, _) = pixels.dims4()?;
        let pixels = match &self.normalize {
            None => pixels.clone(),
            Some((mean, scale)) => pixels.broadcast_sub(mean)?.broadcast_mul(scale)?,
        };
        let p = self.patch_size;
        let grid = size / p;
        let patches = pixels
            .reshape(vec![batch, 3, grid, p, grid, p])?
            .permute(vec![0, 2, 4, 1, 3, 5])?
            .reshape((batch, grid * grid, 3 * p * p))?;
        let Stem { patch, prefix, positions } = &self.stem;
        let patches = patch.forward(&patches)?.broadcast_add(positions)?;
        let (_, count, width) = prefix.dims3()?;
        Ok(Tensor::cat(&[prefix.broadcast_as((batch, count, width))?, patches], 1)?)
    }

    pub(super) fn forward(&self, pixels: &Tensor, injection: &Injection, taps: &Taps) -> Result<Outputs> {
        let mut x = self.embed(pixels)?;
        let extra = injection.token_count()?;
        if let Some(tokens) = &injection.tokens {
            let (batch, _, width) = x.dims3()?;
            x = Tensor::cat(&[x, tokens.broadcast_as((batch, extra, width))?], 1)?;
        }
        let nothing = BlockInjection::default();
        let mut tapped = BTreeMap::new();
        let last = self.blocks.len() - 1;
        for (index, block) in self.blocks.iter().enumerate() {
            let everything = index < last || taps.norm || taps.blocks.contains(&index);
            let read = if everything { Read::All } else { Read::ClsAndLast { extra } };
            let injected = injection.blocks.get(index).unwrap_or(&nothing);
            x = block.forward(&x, (self.heads, self.eps), injected, &read)?;
            if taps.blocks.contains(&index) {
                tapped.insert(index, x.clone());
            }
        }
        Ok(Outputs { last: x, tapped })
    }
}
