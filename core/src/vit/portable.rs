//! The network as a checkpoint of its own, in timm's form: LayerScale folded in, position embeddings of its image size, and
//! no blocks but its own.

use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::json;

use crate::{
    error::{Error, Result},
    system::device::Precision,
    traits::{Backbone, Normalization, Portable, Provenance, StateDict},
    vit::{Vit, VitOptions, VitWeights, weights},
};

impl Vit {
    /// Reads a network that was exported ([`Backbone::portable`]) from its folder.
    ///
    /// # Errors
    /// Files that cannot be read or are no such network; the message names file and tensor.
    pub fn from_folder(
        plugin: &str,
        folder: &Path,
        image_size: usize,
        precision: Precision,
        device: &Device,
    ) -> Result<Self> {
        let file = folder.join(Portable::WEIGHTS);
        let (source, bytes) = (file.display().to_string(), weights::read(&file)?);
        let config = weights::read(&folder.join(Portable::CONFIG))?;
        let provenance = Provenance::of_bytes(&source, &bytes);
        let weights = VitWeights::from_bytes(source, &bytes, Some(&config))?;
        let geometry = weights.geometry()?;
        let own_size = geometry.grid * geometry.patch_size;
        if own_size != image_size {
            let reason = format!("is a network for images of {own_size} px, not of {image_size}");
            return Err(Error::Weights { file: file.display().to_string(), reason });
        }
        let options = VitOptions {
            heads: None,
            depth: None,
            image_size,
            normalization: weights.normalization().unwrap_or(Normalization::NONE),
            checkpoint_blocks: false,
            precision,
        };
        Self::new(plugin, &weights, &options, provenance, device)
    }

    /// The files of a checkpoint that is read as this network, to the bit.
    pub(super) fn checkpoint(&self) -> Result<Portable> {
        let spec = &self.spec;
        let (width, patch) = (spec.width, spec.patch_size);
        let mut weights: StateDict = self.weights()?.into_iter().collect();
        let mut take = |name: &str| {
            let missing =
                || Error::State { owner: spec.plugin.clone(), reason: format!("no tensor `{name}`") };
            weights.remove(name).ok_or_else(missing)
        };
        let (prefix, positions) = (take("prefix")?, take("positions")?);
        let kernel = take("patch_embed.proj.weight")?.reshape((width, 3, patch, patch))?;
        // CLS and registers have their positions added already.
        let none = Tensor::zeros((1, 1, width), positions.dtype(), positions.device())?;
        weights.insert("patch_embed.proj.weight", kernel);
        weights.insert("cls_token", prefix.narrow(1, 0, 1)?);
        weights.insert("pos_embed", Tensor::cat(&[none, positions], 1)?);
        let registers = prefix.dim(1)? - 1;
        if registers > 0 {
            weights.insert("reg_token", prefix.narrow(1, 1, registers)?);
        }
        let config = json!({
            "num_heads": spec.heads,
            "layer_norm_eps": self.eps,
            "pretrained_cfg": { "mean": spec.normalization.mean, "std": spec.normalization.std },
        });
        Ok(Portable { weights, config })
    }
}
