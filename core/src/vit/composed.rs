//! The network out of tensor operations, for GPUs and for widths that the CPU's fast path does not take.

use std::{collections::BTreeMap, sync::Arc};

use candle_core::{DType, Tensor};

use crate::{
    error::Result,
    traits::{BackboneSpec, Injection, Normalization, Taps},
    vit::{
        model::{Block, Outputs, Stem},
        prompts::prompts,
        run::{Read, Run, Setting},
    },
};
use cdl_kernels::{
    cut_patches,
    fused::{Prompts, Rows},
    put_together,
};

pub(super) struct Composed {
    stem: Stem,
    blocks: Arc<Vec<Block>>,
    setting: Setting,
    patch_size: usize,
    /// Per channel, `(1, 3, 1, 1)`; `None` when pixels go in as they are.
    normalize: Option<(Tensor, Tensor)>,
}

impl Composed {
    pub(super) fn new(stem: Stem, blocks: Vec<Block>, spec: &BackboneSpec, setting: Setting) -> Result<Self> {
        let device = stem.patch.weight.device();
        // Pixels are float32, but for tests in float64.
        let dtype = match stem.patch.weight.dtype() {
            DType::F64 => DType::F64,
            _ => DType::F32,
        };
        let channel = |v: [f32; 3]| Tensor::new(&v, device)?.to_dtype(dtype)?.reshape((1, 3, 1, 1));
        let normalize = match spec.normalization {
            Normalization::NONE => None,
            Normalization { mean, std } => Some((channel(mean)?, channel(std.map(|s| 1.0 / s))?)),
        };
        Ok(Self { stem, blocks: Arc::new(blocks), setting, patch_size: spec.patch_size, normalize })
    }

    pub(super) fn layers(&self) -> (Stem, Vec<Block>) {
        (self.stem.clone(), self.blocks.to_vec())
    }

    /// The type of weights and activations.
    fn dtype(&self) -> DType {
        self.stem.patch.weight.dtype()
    }

    /// Pixels `(B, 3, S, S)` to CLS, registers and patches with their positions, `(B, N, D)`.
    fn embed(&self, pixels: &Tensor) -> Result<Tensor> {
        let Stem { patch, prefix, positions } = &self.stem;
        let patches = cut_patches(&pixels.detach(), self.patch_size, self.normalize.as_ref(), self.dtype())?;
        Ok(put_together(prefix, &patch.value(&patches, None)?, positions)?)
    }

    pub(super) fn forward(&self, pixels: &Tensor, injection: &Injection, taps: &Taps) -> Result<Outputs> {
        let Prompts { tokens, rows, own } =
            prompts(injection, self.blocks.len(), pixels.dim(0)?, self.dtype())?;
        let mut x = self.embed(pixels)?;
        if let Some(tokens) = &tokens {
            x = Tensor::cat(&[&x, tokens], 1)?;
        }
        let extra = injection.token_count()?;
        let last = self.blocks.len() - 1;
        // A run ends with every tapped block, and with the last.
        let mut ends: Vec<usize> = taps.blocks.iter().copied().filter(|&block| block < last).collect();
        ends.push(last);
        let mut start = 0;
        let mut tapped = BTreeMap::new();
        for end in ends {
            let everything = end < last || taps.norm || taps.blocks.contains(&end);
            let read = if everything { Read::All } else { Read::ClsAndLast { extra } };
            let (rows, own) =
                of_run(rows.as_ref(), own.get(start..(end + 1).min(own.len())), end + 1 - start)?;
            let run =
                Run { blocks: self.blocks.clone(), range: start..end + 1, setting: self.setting, own, read };
            x = run.apply(&x, rows.as_ref())?;
            if taps.blocks.contains(&end) {
                tapped.insert(end, x.to_dtype(pixels.dtype())?);
            }
            start = end + 1;
        }
        Ok(Outputs { last: x.to_dtype(pixels.dtype())?, tapped })
    }
}

/// The rows of a run of `count` blocks, and which are whose among them; blocks beyond the end of `own` have none.
fn of_run(rows: Option<&Tensor>, own: Option<&[Rows]>, count: usize) -> Result<(Option<Tensor>, Vec<Rows>)> {
    let mut own = own.unwrap_or_default().to_vec();
    own.resize_with(count, Rows::default);
    let places = |own: &Rows| own.attended.clone().chain(own.cls).collect::<Vec<_>>();
    let all: Vec<usize> = own.iter().flat_map(places).collect();
    let (Some(rows), Some(&first), Some(&last)) = (rows, all.first(), all.last()) else {
        return Ok((None, own));
    };
    for own in &mut own {
        own.attended = own.attended.start.saturating_sub(first)..own.attended.end.saturating_sub(first);
        own.cls = own.cls.map(|at| at - first);
    }
    Ok((Some(rows.narrow(1, first, last + 1 - first)?), own))
}
