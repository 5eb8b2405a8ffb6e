//! Reader of ViT checkpoints: safetensors files and PyTorch state dicts. All float types are converted to float32.

mod config_file;
mod frozen_layers;
mod names;
pub mod position_embedding;
mod pytorch;
mod stored;

use std::{collections::HashMap, path::Path};

use candle_core::{DType, Device, Tensor};

use crate::{
    error::{Error, Result, nearest, suggest},
    rng::Rng,
    traits::{HeadsFrom, Normalization},
    vit::weights::{
        config_file::CheckpointConfig,
        names::{Named, block_number},
        stored::Contents,
    },
};

/// Tensors of a checkpoint, with the settings of its configuration files.
pub struct VitWeights {
    source: String,
    /// Tensors under timm's names.
    tensors: HashMap<String, Named>,
    config: CheckpointConfig,
    /// Epsilon of the layer norms.
    eps: f64,
}

/// Sizes of a network, derived from the shapes of its tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Token width `D`.
    pub width: usize,
    /// Width of the MLP's hidden layer.
    pub hidden: usize,
    /// Number of blocks in the file.
    pub depth: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Number of register tokens.
    pub registers: usize,
    /// Number of position embeddings that do not belong to patches: 1 (CLS), 1 + registers, or 0.
    prefix_positions: usize,
    /// Side of the grid of position embeddings in the file.
    pub(crate) grid: usize,
}

/// Sizes of a network with random weights. The hidden layer has four times the width.
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
    /// Draws random weights, determined by `name`, with standard deviation 1/√(inputs), so that attention is not
    /// uniform and GELU gets inputs on both sides of zero.
    pub fn random(name: &str, sizes: VitSizes) -> Result<Self> {
        let VitSizes { width, depth, patch_size: patch, image_size } = sizes;
        let rng = Rng::new(0).derive(name);
        let mut tensors = HashMap::new();
        let mut add = |name: String, shape: &[usize], mean: f64, std: f32| -> Result<()> {
            let value = rng.derive(&name).normal(shape, std, &Device::Cpu)?;
            tensors.insert(name.clone(), Named { tensor: (value + mean)?, called: name });
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
        // Random weights suit any number of heads, so the usual number counts as stated.
        let config =
            CheckpointConfig { heads: usual_heads(width).map(|(heads, _)| heads), ..Default::default() };
        Ok(Self { source: name.into(), tensors, config, eps: names::TIMM.eps })
    }

    /// Reads a safetensors file or a PyTorch state dict and, if given, the `config.json` of timm or transformers.
    ///
    /// # Errors
    /// A file that cannot be read, that is not a plain ViT in one of the known naming schemes, or that contains a value
    /// that is not finite. The message names the tensors.
    pub fn read(file: &Path, config: Option<&Path>) -> Result<Self> {
        Self::read_part(file, config, None)
    }

    /// Reads only the tensors whose dotted names begin with `prefix`, otherwise like [`VitWeights::read`]. The names of
    /// tensors in nested dictionaries begin with the keys of the dictionaries.
    ///
    /// # Errors
    /// Errors of [`VitWeights::read`], and a prefix (setting `weights_prefix`) that no tensor has.
    pub fn read_part(file: &Path, config: Option<&Path>, prefix: Option<&str>) -> Result<Self> {
        let bytes = read(file)?;
        let config = config.map(read).transpose()?;
        Self::parse(file.display().to_string(), &bytes, config.as_deref(), prefix)
    }

    /// Reads a checkpoint from memory. `source` is its name in messages.
    pub fn from_bytes(source: String, bytes: &[u8], config: Option<&[u8]>) -> Result<Self> {
        Self::parse(source, bytes, config, None)
    }

    fn parse(source: String, bytes: &[u8], config: Option<&[u8]>, prefix: Option<&str>) -> Result<Self> {
        let wrong = |reason: String| Error::Weights { file: source.clone(), reason: bounded(reason) };
        let contents = contents(bytes, prefix).map_err(wrong)?;
        if let Some(prefix) = prefix.filter(|_| contents.tensors.is_empty()) {
            let expected = match stored::list(&contents.others.iter().collect::<Vec<_>>()) {
                Some(parts) => {
                    let near = nearest(prefix, contents.others.iter().map(String::as_str));
                    format!("expected the beginning of tensor names in {source}: {parts}{}", suggest(&near))
                }
                None => format!("no tensor in {source} has a name with several parts"),
            };
            return Err(Error::setting("weights_prefix", prefix, bounded(expected)));
        }
        let (tensors, eps) = names::to_timm(contents).map_err(wrong)?;
        let config = config.map(CheckpointConfig::read).transpose().map_err(wrong)?.unwrap_or_default();
        let eps = config.eps.unwrap_or(eps);
        Ok(Self { source, tensors, config, eps })
    }

    /// Reads the normalisation from transformers' `preprocessor_config.json`, unless `config.json` contains one.
    pub fn with_preprocessor(mut self, file: &Path) -> Result<Self> {
        let found = config_file::preprocessor(&read(file)?).map_err(|reason| self.wrong(reason))?;
        self.config.normalization = self.config.normalization.or(found);
        Ok(self)
    }

    /// Returns the normalisation with which the checkpoint was trained, if its configuration contains one.
    pub fn normalization(&self) -> Option<Normalization> {
        self.config.normalization
    }

    /// Returns the epsilon of the layer norms: the value in `config.json`, or else the default of the library whose
    /// tensor names the file has.
    pub fn eps(&self) -> f64 {
        self.eps
    }

    fn wrong(&self, reason: impl Into<String>) -> Error {
        Error::Weights { file: self.source.clone(), reason: reason.into() }
    }

    fn find(&self, name: &str) -> Result<&Named> {
        self.tensors.get(name).ok_or_else(|| self.wrong(format!("no tensor `{name}`")))
    }

    fn misshapen(&self, Named { tensor, called }: &Named, expected: &str) -> Error {
        self.wrong(format!("`{called}` has shape {:?}, expected {expected}", tensor.dims()))
    }

    /// Returns the tensor `name` in float32. Its shape must be `expected`.
    fn tensor(&self, name: &str, expected: &[usize], device: &Device) -> Result<Tensor> {
        let named @ Named { tensor, .. } = self.find(name)?;
        if tensor.dims() != expected {
            return Err(self.misshapen(named, &format!("{expected:?} for this network's width")));
        }
        Ok(tensor.to_dtype(DType::F32)?.to_device(device)?.contiguous()?)
    }

    /// Derives the sizes of the network from the shapes of its tensors.
    pub fn geometry(&self) -> Result<Geometry> {
        let patch = self.find("patch_embed.proj.weight")?;
        let (width, patch_size) = match *patch.tensor.dims() {
            [width, 3, side, other] if width > 0 && side == other && side > 0 => (width, side),
            _ => return Err(self.misshapen(patch, "(D, 3, p, p)")),
        };
        let depth =
            self.tensors.keys().filter_map(|name| block_number(name)).max().map_or(0, |last| last + 1);
        let rows_of = |named: &Named| match *named.tensor.dims() {
            [1, rows, _] => Ok(rows),
            _ => Err(self.misshapen(named, "(1, rows, D)")),
        };
        let fc1 = self.find("blocks.0.mlp.fc1.weight")?;
        let hidden = match *fc1.tensor.dims() {
            [hidden, _] if hidden > 0 => hidden,
            _ => return Err(self.misshapen(fc1, "(hidden, D)")),
        };
        let registers = self.tensors.get("reg_token").map_or(Ok(0), rows_of)?;
        let positions = self.find("pos_embed")?;
        let rows = rows_of(positions)?;
        let square = |n: usize| (n.isqrt() * n.isqrt() == n).then(|| n.isqrt());
        // Besides the patches, CLS alone, CLS and all registers, or no other token has a position embedding.
        let layout = [1, 1 + registers, 0]
            .into_iter()
            .find_map(|prefix| rows.checked_sub(prefix).and_then(square).map(|grid| (prefix, grid)));
        let Some((prefix_positions, grid)) = layout.filter(|&(_, grid)| grid > 0) else {
            let name = &positions.called;
            return Err(
                self.wrong(format!("`{name}` has {rows} rows, which do not form a square grid of patches"))
            );
        };
        Ok(Geometry { width, hidden, depth, patch_size, registers, prefix_positions, grid })
    }

    /// Returns the number of blocks to build.
    pub(super) fn depth(&self, geometry: &Geometry, wanted: Option<usize>) -> Result<usize> {
        match wanted {
            None => Ok(geometry.depth),
            Some(depth) if (1..=geometry.depth).contains(&depth) => Ok(depth),
            Some(depth) => {
                let expected =
                    format!("expected 1 to {}, the number of blocks in {}", geometry.depth, self.source);
                Err(Error::setting("depth", depth, expected))
            }
        }
    }

    /// Returns the number of heads: the setting, the checkpoint's configuration, or the usual number for this width.
    pub(super) fn heads(&self, geometry: &Geometry, wanted: Option<usize>) -> Result<(usize, HeadsFrom)> {
        let width = geometry.width;
        let stated = wanted.or(self.config.heads).map(|heads| (heads, HeadsFrom::Stated));
        let usual = usual_heads(width).map(|(heads, from)| match &self.config.architecture {
            // timm's networks for tests have heads of width 32, all its other plain ViTs the usual number of heads.
            Some(name) if name.starts_with("test_vit") => (width / 32, HeadsFrom::UsualForWidth),
            Some(_) => (heads, HeadsFrom::UsualForWidth),
            None => (heads, from),
        });
        match stated.or(usual) {
            Some((heads, from)) if heads > 0 && width.is_multiple_of(heads) => Ok((heads, from)),
            Some((heads, _)) => {
                Err(Error::setting("heads", heads, format!("expected a divisor of the width {width}")))
            }
            None => {
                let source = &self.source;
                let expected = format!(
                    "expected a number: {source} does not state it, and none is usual for the width {width}"
                );
                Err(Error::setting("heads", "none", expected))
            }
        }
    }

    /// Returns the number of patches along one side of the image.
    pub(super) fn grid(&self, geometry: &Geometry, image_size: usize) -> Result<usize> {
        let patch = geometry.patch_size;
        if image_size == 0 || !image_size.is_multiple_of(patch) {
            let down = (image_size / patch).max(1) * patch;
            let of = &self.source;
            let expected =
                format!("expected a multiple of the patch size {patch} of {of}, for instance {down}");
            return Err(Error::setting("image_size", image_size, expected));
        }
        Ok(image_size / patch)
    }
}

/// Returns the number of heads of the published networks: heads of width 64 up to ViT-L, 16 heads in wider networks.
///
/// At the widths of ViT-B, ViT-L, SO400M, ViT-H, ViT-g and ViT-G, all published networks have the same number. At other
/// widths, the numbers differ: ViT-S has 6 heads, but 12 in MoCo v3; ViT-Ti has 3 heads, but 6 or 12 in MAE-Lite and
/// TinyMIM.
fn usual_heads(width: usize) -> Option<(usize, HeadsFrom)> {
    match width {
        768 | 1024 => Some((width / 64, HeadsFrom::UsualForWidth)),
        1152 | 1280 | 1408 | 1664 => Some((16, HeadsFrom::UsualForWidth)),
        64..=1024 | 1536 if width.is_multiple_of(64) => Some((width / 64, HeadsFrom::GuessedFromWidth)),
        _ => None,
    }
}

/// Truncates a reason, which may quote names and objects of any length from the file.
fn bounded(mut reason: String) -> String {
    const MAX_LENGTH: usize = 2000;
    if let Some((end, _)) = reason.char_indices().nth(MAX_LENGTH) {
        reason.truncate(end);
        reason.push_str(" ... (truncated)");
    }
    reason
}

pub(crate) fn read(file: &Path) -> Result<Vec<u8>> {
    let fail = |e: std::io::Error| Error::Weights { file: file.display().to_string(), reason: e.to_string() };
    crate::system::files::read(file).map_err(fail)
}

/// Reads the tensors of a file in either format, or of the part that `prefix` selects.
fn contents(bytes: &[u8], prefix: Option<&str>) -> Result<Contents, String> {
    if bytes.starts_with(pytorch::ARCHIVE) {
        return pytorch::read(bytes, prefix);
    }
    match pytorch::bare_pickle(bytes) {
        Some(reason) => Err(reason.into()),
        None => stored::safetensors(bytes, prefix),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_come_from_the_setting_the_files_or_the_width() -> Result<()> {
        let weights = |width, config: &[u8]| -> Result<VitWeights> {
            let mut weights =
                VitWeights::random("random", VitSizes { width, depth: 1, patch_size: 4, image_size: 8 })?;
            weights.config = CheckpointConfig::read(config).unwrap_or_default();
            Ok(weights)
        };
        let heads = |width, config: &[u8], wanted| -> Result<_> {
            let weights = weights(width, config)?;
            weights.heads(&weights.geometry()?, wanted)
        };
        use HeadsFrom::{GuessedFromWidth, Stated, UsualForWidth};
        assert_eq!(heads(192, b"{}", None)?, (3, GuessedFromWidth));
        assert_eq!(heads(192, b"{}", Some(12))?, (12, Stated));
        assert_eq!(heads(192, br#"{"num_attention_heads": 12}"#, None)?, (12, Stated));
        assert_eq!(heads(192, br#"{"architecture": "vit_tiny_patch16_224"}"#, None)?, (3, UsualForWidth));
        assert_eq!(heads(64, br#"{"architecture": "test_vit"}"#, None)?, (2, UsualForWidth));
        assert_eq!(heads(768, b"{}", None)?, (12, UsualForWidth));
        Ok(())
    }

    #[test]
    fn heads_of_the_published_widths() {
        use HeadsFrom::{GuessedFromWidth, UsualForWidth};
        for (width, heads, from) in [
            (192, 3, GuessedFromWidth),
            (384, 6, GuessedFromWidth),
            (512, 8, GuessedFromWidth),
            (768, 12, UsualForWidth),
            (1024, 16, UsualForWidth),
            (1280, 16, UsualForWidth),
            (1408, 16, UsualForWidth),
            (1536, 24, GuessedFromWidth),
        ] {
            assert_eq!(usual_heads(width), Some((heads, from)), "{width}");
        }
        assert_eq!(usual_heads(100), None);
        assert_eq!(usual_heads(2048), None);
    }
}
