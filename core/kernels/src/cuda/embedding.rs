//! Tokens before the first block, on a GPU.

use candle_core::{
    DType, Result, Storage, Tensor,
    backend::BackendStorage,
    bail,
    cuda_backend::{WrapErr, cudarc::driver::PushKernelArg},
};
use half::bf16;

use super::launch::{EMBEDDING, Element, by_image, narrow, nullable, on_gpu, optional, room, slice, value};

/// See [`crate::ops::patchify`].
pub fn patchify(
    pixels: &Tensor,
    patch: usize,
    normalize: Option<&(Tensor, Tensor)>,
    dtype: DType,
) -> Result<Tensor> {
    match dtype {
        DType::F32 => cut::<f32>(pixels, patch, normalize),
        DType::BF16 => cut::<bf16>(pixels, patch, normalize),
        other => bail!("patches of {other:?} on a GPU, expected f32 or bf16"),
    }
}

fn cut<T: Element>(pixels: &Tensor, patch: usize, normalize: Option<&(Tensor, Tensor)>) -> Result<Tensor> {
    let (batch, channels, side, also_side) = pixels.dims4()?;
    if side != also_side || patch == 0 || !side.is_multiple_of(patch) {
        bail!("patches of side {patch} from images of shape {:?}", pixels.dims());
    }
    let (mean, scale) =
        normalize.map(|(mean, scale)| (mean.storage_and_layout(), scale.storage_and_layout())).unzip();
    let (mean, scale) = (optional::<f32>(&mean)?, optional::<f32>(&scale)?);
    if [&mean, &scale].iter().any(|values| values.as_ref().is_some_and(|values| values.len() != channels)) {
        bail!("images of {channels} channels are normalised by other than as many values");
    }
    on_gpu!(pixels => storage, layout);
    let device = storage.device();
    let (rows, width) = ((side / patch).pow(2), channels * patch * patch);
    let mut cut = room::<T>(device, batch * rows * width)?;
    let pixels = slice::<f32>(storage, layout)?;
    let kernel = EMBEDDING.function(device, &format!("cut_patches_{}", T::SUFFIX))?;
    let (channels, side, patch) = (narrow(channels)?, narrow(side)?, narrow(patch)?);
    let stream = device.cuda_stream();
    let mut launch = stream.launch_builder(&kernel);
    launch.arg(&pixels);
    nullable!(launch, &mean);
    nullable!(launch, &scale);
    launch.arg(&mut cut).arg(&channels).arg(&side).arg(&patch);
    // SAFETY: the kernel's arguments; the output is as large as all patches, and `mean` and `scale` as the channels.
    unsafe { launch.launch(by_image(rows, batch)?) }.w()?;
    Ok(value(cut, device, (batch, rows, width)).tensor())
}

/// See [`crate::ops::assemble_tokens`].
pub fn assemble_tokens(prefix: &Tensor, patches: &Tensor, positions: &Tensor) -> Result<Tensor> {
    match patches.dtype() {
        DType::F32 => join::<f32>(prefix, patches, positions),
        DType::BF16 => join::<bf16>(prefix, patches, positions),
        other => bail!("tokens of {other:?} on a GPU, expected f32 or bf16"),
    }
}

fn join<T: Element>(prefix: &Tensor, patches: &Tensor, positions: &Tensor) -> Result<Tensor> {
    let (batch, count, width) = patches.dims3()?;
    let (_, first, _) = prefix.dims3()?;
    if prefix.dims3()? != (1, first, width) || positions.dims3()? != (1, count, width) {
        bail!(
            "tokens from a prefix of shape {:?}, patches of {:?} and positions of {:?}",
            prefix.dims(),
            patches.dims(),
            positions.dims()
        );
    }
    on_gpu!(prefix => prefix, prefix_layout);
    on_gpu!(patches => patches, patches_layout);
    on_gpu!(positions => positions, positions_layout);
    let device = patches.device();
    let rows = first + count;
    let mut tokens = room::<T>(device, batch * rows * width)?;
    let (patches, prefix) = (slice::<T>(patches, patches_layout)?, slice::<T>(prefix, prefix_layout)?);
    let positions = slice::<T>(positions, positions_layout)?;
    let kernel = EMBEDDING.function(device, &format!("put_together_{}", T::SUFFIX))?;
    let shape = (batch, rows, width);
    let (first, width) = (narrow(first)?, narrow(width)?);
    let stream = device.cuda_stream();
    let mut launch = stream.launch_builder(&kernel);
    launch.arg(&patches).arg(&prefix).arg(&positions).arg(&mut tokens).arg(&first).arg(&width);
    // SAFETY: the kernel's arguments; shapes were compared above, and the output has a row for each token.
    unsafe { launch.launch(by_image(rows, batch)?) }.w()?;
    Ok(value(tokens, device, shape).tensor())
}
