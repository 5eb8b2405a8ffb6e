//! Trait of frozen networks, with its inputs and outputs.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    system::Precision,
    traits::{Injection, Lengths, Macs, Mode, Provenance, Role, StateDict, Transformer},
};

/// Normalisation of pixels in `[0, 1]`: `(x - mean) / std` for each channel.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Normalization {
    /// Mean of red, green and blue.
    pub mean: [f32; 3],
    /// Standard deviation of red, green and blue.
    pub std: [f32; 3],
}

impl Normalization {
    /// No normalisation.
    pub const NONE: Self = Self { mean: [0.0; 3], std: [1.0; 3] };
}

impl Default for Normalization {
    fn default() -> Self {
        Self::NONE
    }
}

/// Origin of a network's number of attention heads, which the shapes of its tensors do not show.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeadsFrom {
    /// The settings or the files of the weights state it.
    #[default]
    Stated,
    /// It is derived from the width: all published networks of this width, or all of them in the library that wrote the
    /// weights, have the same number.
    UsualForWidth,
    /// It is derived from the width, but published networks of this width have different numbers, or none is known.
    GuessedFromWidth,
}

/// Sizes, normalisation and origin of a backbone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackboneSpec {
    /// Name of the plugin that built the backbone.
    pub plugin: String,
    /// Token width `D`.
    pub width: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads.
    pub heads: usize,
    /// Origin of `heads`.
    #[serde(default)]
    pub heads_from: HeadsFrom,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Side of the input image in pixels.
    pub image_size: usize,
    /// Number of patch tokens of one image. All tokens of an image are `N` = 1 (CLS) + registers + patches.
    pub patches: usize,
    /// Normalisation of the pixels, before the patch embedding.
    pub normalization: Normalization,
    /// Origin of the weights.
    pub provenance: Provenance,
}

/// Context in which a backbone is built.
#[derive(Debug)]
pub struct BackboneContext<'a> {
    /// Teacher or student.
    pub role: Role,
    /// Side of the stream's images in pixels.
    pub image_size: usize,
    /// `published` or `corrected`: selects the defaults of some settings.
    pub mode: Mode,
    /// Device of weights and activations.
    pub device: &'a Device,
    /// Precision of weights and activations. Pixels and features are float32.
    pub precision: Precision,
    /// Folder with `model.safetensors` and `config.json`, written from [`Backbone::portable`]. If set, the network is
    /// read from there in place of the source in the settings. Always `None` for backbones that are not portable.
    pub folder: Option<&'a Path>,
}

/// Contents of the files of an exported network.
#[derive(Debug, Clone)]
pub struct Portable {
    /// Frozen tensors of the network, for `model.safetensors`. Blocks that are not used are left out.
    pub weights: StateDict,
    /// Architecture of the network, for `config.json`.
    pub config: serde_json::Value,
}

impl Portable {
    /// Name of the file of tensors.
    pub const WEIGHTS: &str = "model.safetensors";
    /// Name of the file with the architecture.
    pub const CONFIG: &str = "config.json";
}

/// Intermediate outputs that a caller requests in addition to the CLS token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Taps {
    /// Indices (from 0) of the blocks whose outputs are requested: all tokens, before the final norm.
    pub blocks: BTreeSet<usize>,
    /// Whether all tokens after the final norm are requested.
    pub norm: bool,
}

impl Taps {
    /// Requests no intermediate output.
    pub fn none() -> Self {
        Self::default()
    }

    /// Requests the output of one block.
    pub fn block(index: usize) -> Self {
        Self { blocks: BTreeSet::from([index]), norm: false }
    }

    /// Returns the union of both requests.
    pub(crate) fn union(mut self, other: Self) -> Self {
        self.blocks.extend(other.blocks);
        self.norm |= other.norm;
        self
    }
}

/// Output of one forward pass.
#[derive(Debug, Clone)]
pub struct Features {
    /// CLS token after the final norm, `(B, D)`.
    pub cls: Tensor,
    /// Injected tokens after the final norm, `(B, K, D)`, in the order of injection.
    pub tokens: Option<Tensor>,
    /// Block outputs requested by [`Taps::blocks`], by block index, each `(B, N + K, D)`.
    pub blocks: BTreeMap<usize, Tensor>,
    /// All tokens after the final norm, `(B, N + K, D)`, if [`Taps::norm`] requests them.
    pub norm: Option<Tensor>,
}

impl Features {
    /// Returns the output of block `index`.
    ///
    /// # Errors
    /// An output that the taps did not request.
    pub fn block(&self, index: usize) -> Result<&Tensor> {
        self.blocks.get(&index).ok_or_else(|| Error::State {
            owner: format!("output of block {index}"),
            reason: "the taps do not request it".into(),
        })
    }
}

/// A frozen vision transformer. Gradients flow through it to injected prompts, never to its weights. A forward pass has
/// no side effects.
pub trait Backbone: Send + Sync {
    /// Returns sizes, normalisation and origin.
    fn spec(&self) -> &BackboneSpec;

    /// Runs images `(B, 3, S, S)` in `[0, 1]` through the network with `injection`. Returns the CLS token, the injected
    /// tokens, and the intermediate outputs that `taps` requests.
    ///
    /// # Errors
    /// Shapes that do not fit the network.
    fn forward(&self, pixels: &Tensor, injection: &Injection, taps: &Taps) -> Result<Features>;

    /// Returns the multiply-accumulate operations (MACs) of one image with an injection of these lengths, for the run
    /// record. The default is that of a plain vision transformer of the sizes in [`Backbone::spec`]: no registers,
    /// hidden layers of width `4 D`.
    fn macs(&self, lengths: &Lengths) -> Macs {
        Transformer::plain(self.spec()).macs(lengths)
    }

    /// Returns the frozen tensors by name, to verify that they do not change.
    fn weights(&self) -> Result<Vec<(String, Tensor)>>;

    /// Returns the contents of an exported network, from which its plugin builds a network with byte-identical outputs
    /// ([`BackboneContext::folder`]). `None` if the backbone cannot be exported.
    fn portable(&self) -> Result<Option<Portable>> {
        Ok(None)
    }
}
