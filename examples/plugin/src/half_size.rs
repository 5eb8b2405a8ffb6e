//! `half_size`: a vision transformer that halves the size of its images and so has a quarter of the tokens.

use std::{path::Path, sync::Arc};

use cdl_core::{
    prelude::*,
    vit::{Vit, VitOptions, VitSizes, VitWeights},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Settings of `half_size`. `cdl describe half_size` prints these comments.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct HalfSizeConfig {
    /// Safetensors file or PyTorch state dict with the tensor names of timm or transformers. Default: random weights,
    /// the same in every run.
    pub weights: String,
    /// Number of attention heads. Required if it does not follow from the width.
    pub heads: Option<usize>,
}

cdl_core::register!(Backbone {
    name: "half_size",
    about: "Vision transformer on images reduced to half their size",
    citation: "",
    config: HalfSizeConfig,
    build: |config, context| Ok(Arc::new(HalfSize::new(config, context)?) as Arc<dyn Backbone>),
});

/// Sizes of the random network, which is small and accepts images of 28 px and of 224 px.
const RANDOM: VitSizes = VitSizes { width: 64, depth: 4, patch_size: 7, image_size: 14 };
const RANDOM_HEADS: usize = 4;

struct HalfSize {
    vit: Vit,
    spec: BackboneSpec,
}

impl HalfSize {
    fn new(config: HalfSizeConfig, context: &BackboneContext<'_>) -> Result<Self> {
        if !context.image_size.is_multiple_of(2) {
            return Err(Error::setting(
                "image_size",
                context.image_size,
                "expected an even number of pixels",
            ));
        }
        let image_size = context.image_size / 2;
        if let Some(folder) = context.folder {
            return Ok(Self::around(Vit::from_folder(
                "half_size",
                folder,
                image_size,
                context.precision,
                context.device,
            )?));
        }
        let (weights, heads, provenance) = match config.weights.as_str() {
            "" => {
                let weights = VitWeights::random("random", RANDOM)?;
                (weights, config.heads.or(Some(RANDOM_HEADS)), Provenance::of_bytes("random", b"random"))
            }
            file => {
                let bytes = std::fs::read(file)
                    .map_err(|e| Error::setting("weights", file, format!("cannot be read: {e}")))?;
                (VitWeights::read(Path::new(file), None)?, config.heads, Provenance::of_bytes(file, &bytes))
            }
        };
        let options = VitOptions {
            heads,
            depth: None,
            image_size,
            normalization: Normalization::NONE,
            checkpoint_blocks: false,
            precision: context.precision,
        };
        Ok(Self::around(Vit::new("half_size", &weights, &options, provenance, context.device)?))
    }

    fn around(vit: Vit) -> Self {
        let spec = BackboneSpec { image_size: 2 * vit.spec().image_size, ..vit.spec().clone() };
        Self { vit, spec }
    }
}

impl Backbone for HalfSize {
    fn spec(&self) -> &BackboneSpec {
        &self.spec
    }

    fn forward(&self, pixels: &Tensor, injection: &Injection, taps: &Taps) -> Result<Features> {
        self.vit.forward(&pixels.avg_pool2d(2)?, injection, taps)
    }

    fn macs(&self, lengths: &Lengths) -> Macs {
        self.vit.macs(lengths)
    }

    fn weights(&self) -> Result<Vec<(String, Tensor)>> {
        self.vit.weights()
    }

    fn portable(&self) -> Result<Option<Portable>> {
        self.vit.portable()
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn half_size_passes_the_conformance_kit() -> cdl_core::error::Result<()> {
        cdl_core::testing::check_backbone("half_size", "")
    }
}
