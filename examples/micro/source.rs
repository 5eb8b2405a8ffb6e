//! The large pretrained transformer that is distilled, and what it makes of the procedural images.

use std::{collections::HashMap, fs, path::Path};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor, safetensors};
use rayon::prelude::*;
use serde::Deserialize;

use super::{Normalisation, procedural, procedural::SIDE, resample::resample, vit::Vit};

/// Images that pass through the source network together.
const BATCH: usize = 8;

/// A pretrained network, set up for images enlarged so that its patches cover as many pixels of the small image as those
/// of the micro networks: token by token, both see the same.
pub struct Source {
    network: Vit,
    normalisation: Normalisation,
}

/// What is used of the `config.json` that timm keeps beside weights.
#[derive(Deserialize)]
struct Config {
    num_heads: Option<usize>,
    pretrained_cfg: Normalisation,
}

impl Source {
    /// Reads `model.safetensors` and `config.json` from `folder`.
    pub fn load(folder: &Path, grid: usize) -> Result<Self> {
        let path = folder.join("config.json");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let config: Config = serde_json::from_str(&text)
            .with_context(|| format!("{} is not a timm configuration", path.display()))?;
        let mut network = Vit::load(&folder.join("model.safetensors"), config.num_heads)?;
        network.resize(grid * network.shape.patch)?;
        Ok(Self { network, normalisation: config.pretrained_cfg })
    }

    /// Tokens after the final norm of grey images (N, S, S) with pixels in [0, 1]: float16 (N, 1 + P, D).
    fn tokens(&self, images: &Tensor) -> Result<Tensor> {
        let count = images.dim(0)?;
        let starts: Vec<usize> = (0..count).step_by(BATCH).collect();
        let batches = starts
            .par_iter()
            .map(|&start| {
                let batch = images.narrow(0, start, BATCH.min(count - start))?;
                let enlarged = resample(&batch, self.network.shape.image)?;
                let tokens = self.network.tokens(&self.normalisation.apply(&enlarged)?)?;
                Ok(tokens.to_dtype(DType::F16)?)
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&batches, 0)?)
    }
}

/// Procedural images and the tokens of the source network for them.
pub struct Lesson {
    /// (N, 28, 28), bytes.
    pub images: Tensor,
    /// (N, 1 + P, D), float16.
    pub tokens: Tensor,
}

impl Lesson {
    /// Draws the images and lets the source network look at them. With a cache file, that is done only once.
    pub fn prepare(source: &Source, seed: u64, count: usize, cache: Option<&Path>) -> Result<Self> {
        let bytes = procedural::images(seed, count);
        let images = Tensor::from_vec(bytes, (count, SIDE, SIDE), &Device::Cpu)?;
        if let Some(path) = cache.filter(|path| path.exists()) {
            let mut stored = safetensors::load(path, &Device::Cpu)
                .with_context(|| format!("cannot read {}", path.display()))?;
            let mut take =
                |name: &str| stored.remove(name).with_context(|| format!("{} lacks {name}", path.display()));
            let same =
                take("images")?.flatten_all()?.to_vec1::<u8>()? == images.flatten_all()?.to_vec1::<u8>()?;
            ensure!(same, "{} was made from other images; remove it or name another file", path.display());
            let tokens = take("tokens")?;
            return Ok(Self { images, tokens });
        }
        let tokens = source.tokens(&super::unit_pixels(&images)?)?;
        if let Some(path) = cache {
            let tensors = HashMap::from([("images", images.clone()), ("tokens", tokens.clone())]);
            safetensors::save(&tensors, path).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(Self { images, tokens })
    }
}
