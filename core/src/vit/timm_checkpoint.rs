//! Export of the network as a checkpoint in timm's format: LayerScale is folded in, position embeddings have the
//! network's image size, and only the blocks in use are written.

use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::json;

use crate::{
    error::{Error, Result},
    system::device::Precision,
    traits::{Portable, Provenance, StateDict},
    vit::{Vit, VitOptions, VitWeights, weights},
};
use cdl_kernels::layers::{Block, Linear, Norm, Stem};

impl Vit {
    /// Reads an exported network ([`Backbone::portable`](crate::traits::Backbone::portable)) from its folder.
    ///
    /// # Errors
    /// A file that cannot be read or is not an exported network. The message contains the file and the tensor's name.
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
            let reason = format!("is a network for images of {own_size} px; the images have {image_size} px");
            return Err(Error::Weights { file: file.display().to_string(), reason });
        }
        let normalization = weights.normalization().unwrap_or_default();
        let options = VitOptions { image_size, normalization, precision, ..VitOptions::default() };
        Self::new(plugin, &weights, &options, provenance, device)
    }

    /// Returns all frozen tensors under timm's names. Two tensors do not exist in timm: `prefix`, the CLS and register
    /// tokens plus their position embeddings, and `positions`, the position embeddings of the patches.
    pub(super) fn named_weights(&self) -> Result<Vec<(String, Tensor)>> {
        let (Stem { patch, prefix, positions }, blocks) = self.layers()?;
        let mut all = vec![("prefix".to_string(), prefix), ("positions".into(), positions)];
        all.extend(self.named_layers(patch, blocks));
        Ok(all)
    }

    fn named_layers(&self, patch: Linear, blocks: Vec<Block>) -> Vec<(String, Tensor)> {
        let mut all = Vec::new();
        let mut add = |name: String, layer: Linear| {
            all.push((format!("{name}.weight"), layer.weight));
            all.push((format!("{name}.bias"), layer.bias));
        };
        add("patch_embed.proj".into(), patch);
        let norm = |norm: Norm| Linear { weight: norm.gamma, bias: norm.beta };
        for (i, block) in blocks.into_iter().enumerate() {
            add(format!("blocks.{i}.norm1"), norm(block.norm1));
            add(format!("blocks.{i}.attn.qkv"), block.qkv);
            add(format!("blocks.{i}.attn.proj"), block.proj);
            add(format!("blocks.{i}.norm2"), norm(block.norm2));
            add(format!("blocks.{i}.mlp.fc1"), block.fc1);
            add(format!("blocks.{i}.mlp.fc2"), block.fc2);
        }
        add("norm".into(), norm(self.norm.clone()));
        all
    }

    /// Returns the contents of a checkpoint that reproduces this network bit for bit.
    pub(super) fn checkpoint(&self) -> Result<Portable> {
        let (spec, side) = (&self.spec, self.spec.patch_size);
        let (Stem { patch: Linear { weight, bias }, prefix, positions }, blocks) = self.layers()?;
        let patch = Linear { weight: weight.reshape((spec.width, 3, side, side))?, bias };
        let mut weights: StateDict = self.named_layers(patch, blocks).into_iter().collect();
        // The prefix (CLS and registers) already contains its position embeddings.
        let none = Tensor::zeros((1, 1, spec.width), positions.dtype(), positions.device())?;
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
