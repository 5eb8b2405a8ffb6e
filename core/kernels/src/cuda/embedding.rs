//! Tokens before the first block, on a GPU.

use candle_core::{
    DType, Result, Tensor, bail,
    cuda_backend::{WrapErr, cudarc::driver::PushKernelArg},
};

use super::launch::{Arguments, EMBEDDING, by_dtype, by_part, narrow, optional, uninitialized, value, views};

/// See [`crate::ops::patchify`].
pub fn patchify(
    pixels: &Tensor,
    patch: usize,
    normalize: Option<&(Tensor, Tensor)>,
    dtype: DType,
) -> Result<Tensor> {
    let (batch, channels, side, width) = pixels.dims4()?;
    if side != width || patch == 0 || !side.is_multiple_of(patch) {
        bail!("images of shape {:?} cannot be divided into patches of side {patch}", pixels.dims());
    }
    let (mean, scale) =
        normalize.map(|(mean, scale)| (mean.storage_and_layout(), scale.storage_and_layout())).unzip();
    let (mean, scale) = (optional::<f32>(&mean)?, optional::<f32>(&scale)?);
    if [&mean, &scale].into_iter().flatten().any(|values| values.len() != channels) {
        bail!("expected one mean and one standard deviation for each of the {channels} channels");
    }
    let device = pixels.device().as_cuda_device()?;
    let (rows, width) = ((side / patch).pow(2), channels * patch * patch);
    views!(pixels: f32);
    by_dtype!(dtype, T => {
        let mut patches = uninitialized::<T>(device, batch * rows * width)?;
        let kernel = EMBEDDING.kernel::<T>(device, "patchify")?;
        let sizes = [narrow(channels)?, narrow(side)?, narrow(patch)?];
        let stream = device.cuda_stream();
        let mut launch = stream.launch_builder(&kernel);
        launch.arg(&pixels).or_null(mean.as_ref()).or_null(scale.as_ref()).arg(&mut patches).numbers(&sizes);
        // SAFETY: the arguments match the kernel; the output has space for all patches, and `mean` and `scale` have one
        // value per channel.
        unsafe { launch.launch(by_part(rows, batch, 128)?) }.w()?;
        Ok(value(patches, device, (batch, rows, width)).tensor())
    })
}

/// See [`crate::ops::assemble_tokens`].
pub fn assemble_tokens(prefix: &Tensor, patches: &Tensor, positions: &Tensor) -> Result<Tensor> {
    let (batch, count, width) = patches.dims3()?;
    let (_, first, _) = prefix.dims3()?;
    if prefix.dims3()? != (1, first, width) || positions.dims3()? != (1, count, width) {
        let shapes = [prefix, patches, positions].map(Tensor::dims);
        bail!("prefix, patches and positions do not fit each other: shapes {shapes:?}");
    }
    let (device, rows) = (patches.device().as_cuda_device()?, first + count);
    by_dtype!(patches.dtype(), T => {
        views!(patches: T, prefix: T, positions: T);
        let mut tokens = uninitialized::<T>(device, batch * rows * width)?;
        let kernel = EMBEDDING.kernel::<T>(device, "assemble_tokens")?;
        let sizes = [narrow(first)?, narrow(width)?];
        let stream = device.cuda_stream();
        let mut launch = stream.launch_builder(&kernel);
        launch.arg(&patches).arg(&prefix).arg(&positions).arg(&mut tokens).numbers(&sizes);
        // SAFETY: the arguments match the kernel; shapes were compared above, and the output has a row for each token.
        unsafe { launch.launch(by_part(rows, batch, 128)?) }.w()?;
        Ok(value(tokens, device, (batch, rows, width)).tensor())
    })
}
