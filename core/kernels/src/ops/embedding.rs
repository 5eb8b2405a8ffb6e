//! Frozen embedding before a network's first block: images to patches, and patches with CLS and registers to tokens.

use candle_core::{DType, Result, Tensor};

use crate::storage::return_on_gpu;

/// Divides images `(B, C, S, S)` into patches of `patch` by `patch` pixels: rows `(B, G, C p p)` of `dtype`, normalised
/// by mean and reciprocal standard deviation, each `(1, C, 1, 1)`, if given.
pub fn patchify(
    pixels: &Tensor,
    patch: usize,
    normalize: Option<&(Tensor, Tensor)>,
    dtype: DType,
) -> Result<Tensor> {
    let (batch, channels, size, _) = pixels.dims4()?;
    return_on_gpu!(pixels => patchify(&pixels.contiguous()?, patch, normalize, dtype));
    let pixels = match normalize {
        None => pixels.clone(),
        Some((mean, scale)) => pixels.broadcast_sub(mean)?.broadcast_mul(scale)?,
    };
    let grid = size / patch;
    pixels
        .to_dtype(dtype)?
        .reshape(vec![batch, channels, grid, patch, grid, patch])?
        .permute(vec![0, 2, 4, 1, 3, 5])?
        .reshape((batch, grid * grid, channels * patch * patch))
}

/// Concatenates `prefix` `(1, R, D)` and `patches` `(B, P, D)` plus `positions` `(1, P, D)`: `(B, R + P, D)`.
pub fn assemble_tokens(prefix: &Tensor, patches: &Tensor, positions: &Tensor) -> Result<Tensor> {
    return_on_gpu!(patches => assemble_tokens(&prefix.contiguous()?, patches, &positions.contiguous()?));
    let (_, count, width) = prefix.dims3()?;
    let prefix = prefix.broadcast_as((patches.dim(0)?, count, width))?;
    Tensor::cat(&[prefix, patches.broadcast_add(positions)?], 1)
}
