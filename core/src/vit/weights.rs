//! Reading a ViT's tensors: timm's names in safetensors, any float type widened to float32.

use std::{collections::HashMap, path::Path};

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

use super::position::resample;
use crate::{Error, Normalization, Result, Rng};

/// The tensors of a checkpoint, with what its `config.json` says.
pub struct VitWeights {
    source: String,
    tensors: HashMap<String, Tensor>,
    config: HubConfig,
}

/// The part of a timm hub configuration that matters here.
#[derive(Debug, Default, Deserialize)]
struct HubConfig {
    num_heads: Option<usize>,
    pretrained_cfg: Option<PretrainedConfig>,
}

#[derive(Debug, Deserialize)]
struct PretrainedConfig {
    mean: Option<[f32; 3]>,
    std: Option<[f32; 3]>,
}

/// Sizes that follow from the tensors' shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Token width `D`.
    pub width: usize,
    /// Width of the MLP's hidden layer.
    pub hidden: usize,
    /// Blocks in the file.
    pub depth: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Register tokens.
    pub registers: usize,
    /// Position embeddings that do not belong to patches: 1 (CLS), 1 + registers, or 0.
    prefix_positions: usize,
    /// Side of the grid of position embeddings in the file.
    pub(super) grid: usize,
}

/// Sizes of a network that has no checkpoint; the hidden layer has four times the width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VitSizes {
    /// Token width `D`.
    pub width: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Side of the image in pixels, which decides the number of position embeddings.
    pub image_size: usize,
}

impl VitWeights {
    /// Random weights, the same for the same `name`, of deviation 1/√(inputs), so that attention is uneven and GELU is
    /// used on both sides of zero.
    pub fn random(name: &str, sizes: VitSizes) -> Result<Self> {
        let VitSizes { width, depth, patch_size: patch, image_size } = sizes;
        let rng = Rng::new(0).derive(name);
        let mut tensors = HashMap::new();
        let mut add = |name: String, shape: &[usize], mean: f64, std: f32| -> Result<()> {
            let value = rng.derive(&name).normal(shape, std, &Device::Cpu)?;
            tensors.insert(name, (value + mean)?);
            Ok(())
        };
        let of_inputs = |inputs: usize| 1.0 / (inputs as f32).sqrt();
        add("cls_token".into(), &[1, 1, width], 0.0, 0.5)?;
        add("pos_embed".into(), &[1, 1 + (image_size / patch).pow(2), width], 0.0, 0.5)?;
        let pixels = 3 * patch * patch;
        add("patch_embed.proj.weight".into(), &[width, 3, patch, patch], 0.0, of_inputs(pixels))?;
        add("patch_embed.proj.bias".into(), &[width], 0.0, 0.2)?;
        let norms = (0..depth).flat_map(|b| [format!("blocks.{b}.norm1"), format!("blocks.{b}.norm2")]);
        for norm in norms.chain(["norm".to_string()]) {
            add(format!("{norm}.weight"), &[width], 1.0, 0.2)?;
            add(format!("{norm}.bias"), &[width], 0.0, 0.2)?;
        }
        for block in 0..depth {
            for (part, outputs, inputs) in [
                ("attn.qkv", 3 * width, width),
                ("attn.proj", width, width),
                ("mlp.fc1", 4 * width, width),
                ("mlp.fc2", width, 4 * width),
            ] {
                let name = format!("blocks.{block}.{part}");
                add(format!("{name}.weight"), &[outputs, inputs], 0.0, of_inputs(inputs))?;
                add(format!("{name}.bias"), &[outputs], 0.0, 0.2)?;
            }
        }
        Ok(Self { source: name.into(), tensors, config: HubConfig::default() })
    }

    /// Reads a safetensors file and, if there is one, the hub's `config.json`.
    pub fn read(file: &Path, config: Option<&Path>) -> Result<Self> {
        let source = file.display().to_string();
        let fail = |path: &Path, e: std::io::Error| Error::Weights {
            file: path.display().to_string(),
            reason: e.to_string(),
        };
        let bytes = std::fs::read(file).map_err(|e| fail(file, e))?;
        let config = config.map(|path| std::fs::read(path).map_err(|e| fail(path, e))).transpose()?;
        Self::from_bytes(source, &bytes, config.as_deref())
    }

    /// The same from memory; `source` names it in messages.
    pub fn from_bytes(source: String, bytes: &[u8], config: Option<&[u8]>) -> Result<Self> {
        let tensors =
            candle_core::safetensors::load_buffer(bytes, &Device::Cpu).map_err(|e| Error::Weights {
                file: source.clone(),
                reason: format!("not a complete safetensors file ({e}); fetch or copy it again"),
            })?;
        let config = match config {
            None => HubConfig::default(),
            Some(json) => serde_json::from_slice(json).map_err(|e| Error::Weights {
                file: source.clone(),
                reason: format!("its config.json cannot be read: {e}"),
            })?,
        };
        Ok(Self { source, tensors, config })
    }

    /// Mean and standard deviation that the checkpoint was trained with, if its configuration tells.
    pub fn normalization(&self) -> Option<Normalization> {
        let config = self.config.pretrained_cfg.as_ref()?;
        Some(Normalization { mean: config.mean?, std: config.std? })
    }

    fn wrong(&self, reason: impl Into<String>) -> Error {
        Error::Weights { file: self.source.clone(), reason: reason.into() }
    }

    fn find(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| {
            let near = crate::error::nearest(name, self.tensors.keys().map(String::as_str));
            let near = near.map(|n| format!(" (the most similar name there is `{n}`)")).unwrap_or_default();
            self.wrong(format!("no tensor `{name}`{near}; expected a ViT with timm's names"))
        })
    }

    /// The tensor `name` in float32, which must have the shape `expected`.
    fn tensor(&self, name: &str, expected: &[usize], device: &Device) -> Result<Tensor> {
        let tensor = self.find(name)?;
        if tensor.dims() != expected {
            return Err(self.wrong(format!(
                "`{name}` has shape {:?}, expected {expected:?} for this network's width",
                tensor.dims()
            )));
        }
        Ok(tensor.to_dtype(DType::F32)?.to_device(device)?.contiguous()?)
    }

    /// Sizes that the shapes show.
    pub fn geometry(&self) -> Result<Geometry> {
        let patch = self.find("patch_embed.proj.weight")?;
        let &[width, channels, patch_size, other] = patch.dims() else {
            return Err(self.wrong(format!("`patch_embed.proj.weight` has shape {:?}", patch.dims())));
        };
        if channels != 3 || patch_size != other || patch_size == 0 {
            return Err(self.wrong(format!(
                "`patch_embed.proj.weight` has shape {:?}, expected (D, 3, p, p)",
                patch.dims()
            )));
        }
        self.refuse_unknown()?;
        let depth =
            self.tensors.keys().filter_map(|name| block_number(name)).max().map_or(0, |last| last + 1);
        if depth == 0 {
            self.find("blocks.0.norm1.weight")?;
        }
        let rows_of = |name: &str| -> Result<usize> {
            match self.find(name)?.dims() {
                &[1, rows, _] => Ok(rows),
                dims => Err(self.wrong(format!("`{name}` has shape {dims:?}, expected (1, rows, D)"))),
            }
        };
        let hidden = match self.find("blocks.0.mlp.fc1.weight")?.dims() {
            &[hidden, _] => hidden,
            dims => return Err(self.wrong(format!("`blocks.0.mlp.fc1.weight` has shape {dims:?}"))),
        };
        let registers = if self.tensors.contains_key("reg_token") { rows_of("reg_token")? } else { 0 };
        let rows = rows_of("pos_embed")?;
        let square = |n: usize| (n.isqrt() * n.isqrt() == n).then(|| n.isqrt());
        // timm leaves the CLS token's position out of some checkpoints with registers, and keeps all in others.
        let layout = [1, 1 + registers, 0]
            .into_iter()
            .find_map(|prefix| rows.checked_sub(prefix).and_then(square).map(|grid| (prefix, grid)));
        let Some((prefix_positions, grid)) = layout.filter(|&(_, grid)| grid > 0) else {
            return Err(self.wrong(format!("`pos_embed` has {rows} rows, which are no square of patches")));
        };
        Ok(Geometry { width, hidden, depth, patch_size, registers, prefix_positions, grid })
    }

    /// Refuses checkpoints of networks that compute something else: whatever is inside a block or before it must be
    /// known, or it would be left out without a word.
    fn refuse_unknown(&self) -> Result<()> {
        const PARTS: [&str; 14] = [
            "norm1.weight",
            "norm1.bias",
            "attn.qkv.weight",
            "attn.qkv.bias",
            "attn.proj.weight",
            "attn.proj.bias",
            "ls1.gamma",
            "norm2.weight",
            "norm2.bias",
            "mlp.fc1.weight",
            "mlp.fc1.bias",
            "mlp.fc2.weight",
            "mlp.fc2.bias",
            "ls2.gamma",
        ];
        let unknown = |name: &&String| match name.strip_prefix("blocks.") {
            Some(rest) => rest.split_once('.').is_none_or(|(_, part)| !PARTS.contains(&part)),
            None => name.starts_with("norm_pre.") || *name == "dist_token",
        };
        match self.tensors.keys().filter(unknown).min() {
            Some(name) => Err(self.wrong(format!("has `{name}`, which a plain ViT does not have"))),
            None => Ok(()),
        }
    }

    /// The number of blocks to build.
    pub(super) fn depth(&self, geometry: &Geometry, wanted: Option<usize>) -> Result<usize> {
        match wanted {
            None => Ok(geometry.depth),
            Some(depth) if (1..=geometry.depth).contains(&depth) => Ok(depth),
            Some(depth) => Err(Error::setting(
                "depth",
                depth,
                format!("expected 1 to {}, the blocks in {}", geometry.depth, self.source),
            )),
        }
    }

    /// The number of heads: as set, as the checkpoint's configuration says, or heads of width 64.
    pub(super) fn heads(&self, geometry: &Geometry, wanted: Option<usize>) -> Result<usize> {
        let width = geometry.width;
        match wanted.or(self.config.num_heads) {
            Some(heads) if heads > 0 && width.is_multiple_of(heads) => Ok(heads),
            Some(heads) => {
                Err(Error::setting("heads", heads, format!("expected a divisor of the width {width}")))
            }
            None if width.is_multiple_of(64) => Ok(width / 64),
            None => Err(self.wrong(format!(
                "the width {width} does not tell the number of attention heads; set `heads`"
            ))),
        }
    }

    /// Patches along one side of the image.
    pub(super) fn grid(&self, geometry: &Geometry, image_size: usize) -> Result<usize> {
        let patch = geometry.patch_size;
        if image_size == 0 || !image_size.is_multiple_of(patch) {
            let down = (image_size / patch).max(1) * patch;
            return Err(Error::setting(
                "image_size",
                image_size,
                format!(
                    "expected a multiple of the patch size {patch} of {}, for instance {down}",
                    self.source
                ),
            ));
        }
        Ok(image_size / patch)
    }

    /// Weight `(outputs, inputs)` and bias `(outputs,)` of `{name}`.
    pub(super) fn linear(
        &self,
        name: &str,
        outputs: usize,
        inputs: usize,
        device: &Device,
    ) -> Result<(Tensor, Tensor)> {
        Ok((
            self.tensor(&format!("{name}.weight"), &[outputs, inputs], device)?,
            self.tensor(&format!("{name}.bias"), &[outputs], device)?,
        ))
    }

    /// A linear layer with LayerScale folded in, if the file has it.
    pub(super) fn scaled(
        &self,
        name: &str,
        weight: Tensor,
        bias: Tensor,
        device: &Device,
    ) -> Result<(Tensor, Tensor)> {
        if !self.tensors.contains_key(name) {
            return Ok((weight, bias));
        }
        let gamma = self.tensor(name, &[weight.dim(0)?], device)?;
        Ok((weight.broadcast_mul(&gamma.unsqueeze(1)?)?, (bias * gamma)?))
    }

    /// Scale and shift of a layer norm.
    pub(super) fn norm(&self, name: &str, width: usize, device: &Device) -> Result<(Tensor, Tensor)> {
        Ok((
            self.tensor(&format!("{name}.weight"), &[width], device)?,
            self.tensor(&format!("{name}.bias"), &[width], device)?,
        ))
    }

    /// The patch convolution as a linear layer: `(D, 3 p p)` and `(D,)`.
    pub(super) fn patch_embedding(&self, geometry: &Geometry, device: &Device) -> Result<(Tensor, Tensor)> {
        let Geometry { width, patch_size: p, .. } = *geometry;
        let weight = self.tensor("patch_embed.proj.weight", &[width, 3, p, p], device)?;
        let bias = self.tensor("patch_embed.proj.bias", &[width], device)?;
        Ok((weight.reshape((width, 3 * p * p))?, bias))
    }

    /// CLS and register tokens with their positions `(1, 1 + R, D)`, and the patches' positions `(1, grid², D)`.
    pub(super) fn positions(
        &self,
        geometry: &Geometry,
        grid: usize,
        device: &Device,
    ) -> Result<(Tensor, Tensor)> {
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

/// `7` of `blocks.7.attn.qkv.weight`.
fn block_number(name: &str) -> Option<usize> {
    name.strip_prefix("blocks.")?.split('.').next()?.parse().ok()
}
