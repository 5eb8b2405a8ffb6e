//! The frozen network: its contract, what it is told and what it gives back.

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

/// How pixels in `[0, 1]` become the network's input: `(x - mean) / std` for each channel.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Normalization {
    /// Red, green, blue.
    pub mean: [f32; 3],
    /// Red, green, blue.
    pub std: [f32; 3],
}

impl Normalization {
    /// Pixels go in as they are.
    pub const NONE: Self = Self { mean: [0.0; 3], std: [1.0; 3] };
}

impl Default for Normalization {
    fn default() -> Self {
        Self::NONE
    }
}

/// Sizes, normalisation and origin of a backbone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackboneSpec {
    /// Name of the plugin that built it.
    pub plugin: String,
    /// Token width `D`.
    pub width: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads.
    pub heads: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Side of the input image in pixels.
    pub image_size: usize,
    /// Patch tokens of one image; `N` = 1 + registers + patches.
    pub patches: usize,
    /// Applied to pixels before anything else.
    pub normalization: Normalization,
    /// Where the weights came from.
    pub provenance: Provenance,
}

/// Surroundings that a backbone is built for.
#[derive(Debug)]
pub struct BackboneContext<'a> {
    /// Teacher or student.
    pub role: Role,
    /// Side of the stream's images in pixels.
    pub image_size: usize,
    /// `published` or `corrected`: defaults of settings that differ between the two.
    pub mode: Mode,
    /// Where weights and activations live.
    pub device: &'a Device,
    /// Numbers of weights and activations; pixels and features are float32.
    pub precision: Precision,
    /// A folder with `model.safetensors` and `config.json` as [`Backbone::portable`] gave them, to be read in place of
    /// whatever the settings name. Only backbones that are portable are ever given one.
    pub folder: Option<&'a Path>,
}

/// Contents of the files that describe a network completely.
#[derive(Debug, Clone)]
pub struct Portable {
    /// Frozen tensors of the blocks that are used, for `model.safetensors`.
    pub weights: StateDict,
    /// Everything else that building the network needs, for `config.json`.
    pub config: serde_json::Value,
}

impl Portable {
    /// Name of the file of tensors.
    pub const WEIGHTS: &str = "model.safetensors";
    /// Name of the file with everything else.
    pub const CONFIG: &str = "config.json";
}

/// Intermediate values that a caller requests besides the CLS token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Taps {
    /// Outputs of these blocks, all tokens, before the final norm.
    pub blocks: BTreeSet<usize>,
    /// All tokens after the final norm.
    pub norm: bool,
}

impl Taps {
    /// Nothing but the CLS token and the injected tokens.
    pub fn none() -> Self {
        Self::default()
    }

    /// The output of one block.
    pub fn block(index: usize) -> Self {
        Self { blocks: BTreeSet::from([index]), norm: false }
    }

    /// Union of both requests.
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
    /// Injected extra tokens after the final norm, `(B, K, D)`, in the order they were injected.
    pub tokens: Option<Tensor>,
    /// Block outputs asked for by [`Taps::blocks`], each `(B, N + K, D)`.
    pub blocks: BTreeMap<usize, Tensor>,
    /// All tokens after the final norm, `(B, N + K, D)`, if asked for by [`Taps::norm`].
    pub norm: Option<Tensor>,
}

impl Features {
    /// The output of block `index`, which must have been asked for.
    pub fn block(&self, index: usize) -> Result<&Tensor> {
        self.blocks.get(&index).ok_or_else(|| Error::State {
            owner: format!("output of block {index}"),
            reason: "not asked for by the taps".into(),
        })
    }
}

/// A frozen vision transformer. Gradients flow through it to injected prompts, never to its weights; a forward pass
/// has no side effects.
pub trait Backbone: Send + Sync {
    /// Sizes, normalisation and origin.
    fn spec(&self) -> &BackboneSpec;

    /// Runs images `(B, 3, S, S)` in `[0, 1]` through the network with `injection` applied, and gives back what
    /// `taps` asks for.
    ///
    /// # Errors
    /// Shapes that do not fit the network.
    fn forward(&self, pixels: &Tensor, injection: &Injection, taps: &Taps) -> Result<Features>;

    /// Multiply-adds of one image with so much injected, for the record. Without it, those of a plain vision transformer
    /// of the sizes in [`Backbone::spec`]: no registers, hidden layers of `4 D`.
    fn macs(&self, lengths: &Lengths) -> Macs {
        Transformer::plain(self.spec()).macs(lengths)
    }

    /// The frozen tensors by name, to prove that they stay as they are.
    fn weights(&self) -> Result<Vec<(String, Tensor)>>;

    /// Contents of the network's files, from which its plugin builds one that computes the same bytes
    /// ([`BackboneContext::folder`]). `None`: it cannot be exported.
    fn portable(&self) -> Result<Option<Portable>> {
        Ok(None)
    }
}
