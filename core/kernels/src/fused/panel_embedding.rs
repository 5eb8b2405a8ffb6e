//! Embedding of images into panels of tokens.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::{
    block_run::Network,
    packed_linear::Start,
    panel::{self, Buffer, Shares},
    tile::PANEL,
};
use crate::{blocks::Settings, layers::Stem, storage::on_cpu};

/// Embedded images: the input of the first block.
pub struct Embedded {
    /// Tokens of all images; the prompts' tokens are zeros.
    pub panels: Buffer,
    pub images: usize,
    /// Number of tokens of an image, including the prompts' tokens.
    pub tokens: usize,
    /// Tokens of the prompts `(B, K, D)`, which follow the tokens of each image.
    pub prompt_tokens: Option<Tensor>,
    /// Number of threads among which the panels are divided.
    pub threads: usize,
}

/// Divides one image `(3, S, S)` into patches: panels of `3 p p` rows.
fn patchify(settings: &Settings, pixels: &[f32], size: usize, panels: &mut [f32]) {
    let p = settings.patch_size;
    let grid = size / p;
    let inputs = 3 * p * p;
    for input in 0..inputs {
        let (channel, y, x) = (input / (p * p), input / p % p, input % p);
        let (mean, scale) =
            settings.normalize.map_or((0.0, 1.0), |(mean, scale)| (mean[channel], scale[channel]));
        for patch in 0..grid * grid {
            let pixel = (channel * size + patch / grid * p + y) * size + patch % grid * p + x;
            panels[(patch / PANEL * inputs + input) * PANEL + patch % PANEL] = (pixels[pixel] - mean) * scale;
        }
    }
}

impl Network {
    /// Embeds images `(B, 3, S, S)`, with space for the prompts' tokens `(B, K, D)` at the end of each.
    pub fn embed(&self, pixels: &Tensor, prompt_tokens: Option<&Tensor>) -> Result<Embedded> {
        let Self { settings, level, pool, .. } = self;
        pool.begin_pass();
        let (images, _, size, _) = pixels.dims4()?;
        let injected = prompt_tokens.map_or(Ok(0), |tokens| tokens.dim(1))?;
        let pixels = pixels.contiguous()?;
        on_cpu!(f32: pixels => pixels);
        let Stem { patch: layer, prefix: prefix_tokens, positions } = &self.stem;
        let (d, patch_size) = (layer.outputs, settings.patch_size);
        let grid = size / patch_size;
        let threads = rayon::current_num_threads();
        let (patches, prefix) = (grid * grid, prefix_tokens.len() / d);
        let tokens = prefix + patches + injected;

        let per_image = panel::panels(patches) * d * PANEL;
        let mut embedded = pool.take(images * per_image);
        embedded.par_chunks_exact_mut(per_image).zip(pixels.par_chunks_exact(3 * size * size)).for_each(
            |(embedded, pixels)| {
                let _span = tracing::trace_span!("embedding").entered();
                let inputs = 3 * patch_size * patch_size;
                let mut pixel_panels = pool.zeros(panel::panels(patches) * inputs * PANEL);
                patchify(settings, pixels, size, &mut pixel_panels);
                layer.forward(*level, 0..d, &pixel_panels, patches, Start::Bias, embedded, |_, _, _| {});
            },
        );
        let shares = Shares::new(images * tokens, threads);
        let mut all = pool.zeros(shares.panels() * d * PANEL);
        shares.each([(&mut all, d)], |part, [all]| {
            let _span = tracing::trace_span!("embedding").entered();
            let alone = part.alone();
            for index in 0..part.count {
                let (image, position) = ((part.first + index) / tokens, (part.first + index) % tokens);
                let to = panel::column_mut(&alone, all, d, index);
                if position < prefix {
                    to.zip(&prefix_tokens[position * d..][..d]).for_each(|(to, from)| *to = *from);
                } else if position < prefix + patches {
                    let patch = position - prefix;
                    let from = &embedded[image * per_image + patch / PANEL * d * PANEL + patch % PANEL..];
                    let from = from.iter().step_by(PANEL).zip(&positions[patch * d..][..d]);
                    to.zip(from).for_each(|(to, (value, position))| *to = value + position);
                }
            }
        });
        Ok(Embedded { panels: all, images, tokens, prompt_tokens: prompt_tokens.cloned(), threads })
    }
}
