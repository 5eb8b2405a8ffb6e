//! Construction of the frozen layers from a checkpoint's tensors.

use candle_core::{Device, Tensor};

use super::{Geometry, VitWeights, position_embedding::resample};
use crate::error::Result;
use cdl_kernels::layers::{Block, Linear, Norm, Stem};

impl VitWeights {
    /// Builds the stem (all layers before the first block) for images of `grid` by `grid` patches.
    pub(in crate::vit) fn stem(&self, geometry: &Geometry, grid: usize, device: &Device) -> Result<Stem> {
        let Geometry { width, patch_size: p, .. } = *geometry;
        let (prefix, positions) = self.positions(geometry, grid, device)?;
        let weight = self.tensor("patch_embed.proj.weight", &[width, 3, p, p], device)?;
        let bias = self.tensor("patch_embed.proj.bias", &[width], device)?;
        Ok(Stem { patch: Linear { weight: weight.reshape((width, 3 * p * p))?, bias }, prefix, positions })
    }

    /// Builds block `index`. LayerScale, if the file has it, is folded into the linear layers.
    pub(in crate::vit) fn block(&self, geometry: &Geometry, index: usize, device: &Device) -> Result<Block> {
        let Geometry { width: d, hidden, .. } = *geometry;
        let name = |part: &str| format!("blocks.{index}.{part}");
        let scaled = |part: &str, scale: &str, inputs: usize| -> Result<Linear> {
            let Linear { weight, bias } = self.linear(&name(part), d, inputs, device)?;
            if !self.tensors.contains_key(&name(scale)) {
                return Ok(Linear { weight, bias });
            }
            let gamma = self.tensor(&name(scale), &[d], device)?;
            Ok(Linear { weight: weight.broadcast_mul(&gamma.unsqueeze(1)?)?, bias: (bias * gamma)? })
        };
        Ok(Block {
            norm1: self.norm(&name("norm1"), d, device)?,
            qkv: self.linear(&name("attn.qkv"), 3 * d, d, device)?,
            proj: scaled("attn.proj", "ls1.gamma", d)?,
            norm2: self.norm(&name("norm2"), d, device)?,
            fc1: self.linear(&name("mlp.fc1"), hidden, d, device)?,
            fc2: scaled("mlp.fc2", "ls2.gamma", hidden)?,
        })
    }

    /// Builds the layer norm `name`.
    pub(in crate::vit) fn norm(&self, name: &str, width: usize, device: &Device) -> Result<Norm> {
        Ok(Norm {
            gamma: self.tensor(&format!("{name}.weight"), &[width], device)?,
            beta: self.tensor(&format!("{name}.bias"), &[width], device)?,
        })
    }

    fn linear(&self, name: &str, outputs: usize, inputs: usize, device: &Device) -> Result<Linear> {
        Ok(Linear {
            weight: self.tensor(&format!("{name}.weight"), &[outputs, inputs], device)?,
            bias: self.tensor(&format!("{name}.bias"), &[outputs], device)?,
        })
    }

    /// Returns CLS and register tokens with their position embeddings `(1, 1 + R, D)`, and the position embeddings of
    /// the patches `(1, grid², D)`.
    fn positions(&self, geometry: &Geometry, grid: usize, device: &Device) -> Result<(Tensor, Tensor)> {
        let Geometry { width, registers, prefix_positions, grid: from, .. } = *geometry;
        let rows = prefix_positions + from * from;
        let all = self.tensor("pos_embed", &[1, rows, width], &Device::Cpu)?;
        let mut prefix = self.tensor("cls_token", &[1, 1, width], &Device::Cpu)?;
        if registers > 0 {
            let registers = self.tensor("reg_token", &[1, registers, width], &Device::Cpu)?;
            prefix = Tensor::cat(&[prefix, registers], 1)?;
        }
        if prefix_positions > 0 {
            let own = all.narrow(1, 0, prefix_positions)?;
            let bare = 1 + registers - prefix_positions;
            prefix = (prefix + own.pad_with_zeros(1, 0, bare)?)?;
        }
        let mut patches = all.narrow(1, prefix_positions, from * from)?;
        if from != grid {
            let values = patches.flatten_all()?.to_vec1::<f32>()?;
            let values = resample(&values, from, grid, width);
            patches = Tensor::from_vec(values, (1, grid * grid, width), &Device::Cpu)?;
        }
        Ok((prefix.to_device(device)?, patches.contiguous()?.to_device(device)?))
    }
}
