//! Layer normalisation on a GPU.

use candle_core::{
    Result, Storage, Tensor,
    backend::BackendStorage,
    bail,
    cuda_backend::{WrapErr, cudarc::driver::PushKernelArg},
};

use super::launch::{
    Element, LAYER_NORM, by_dtype, by_row, narrow, nullable, on_gpu, optional, room, same_count, slice,
    tensor,
};
use crate::tape::Value;

/// See [`crate::layer_norm`]. `gamma` and `beta` are float32, whatever `x` is.
pub fn layer_norm(x: &Tensor, gamma: &Tensor, beta: &Tensor, eps: f64) -> Result<Value> {
    let shape = x.shape();
    on_gpu!(x => x, layout);
    on_gpu!(gamma => gamma, gamma_layout);
    on_gpu!(beta => beta, beta_layout);
    let (gamma, beta) = (slice::<f32>(gamma, gamma_layout)?, slice::<f32>(beta, beta_layout)?);
    let width = gamma.len();
    if layout.dims().last() != Some(&width) || beta.len() != width {
        bail!("layer norm of width {width} on a tensor of shape {:?}", layout.dims());
    }
    by_dtype!(x, T => {
        let device = x.device();
        let count = layout.shape().elem_count();
        let (rows, width, eps) = (narrow(count / width)?, narrow(width)?, eps as f32);
        let (x, mut y) = (slice::<T>(x, layout)?, room::<T>(device, count)?);
        let kernel = LAYER_NORM.function(device, &format!("layer_norm_forward_{}", T::SUFFIX))?;
        let stream = device.cuda_stream();
        let mut launch = stream.launch_builder(&kernel);
        launch.arg(&x).arg(&gamma).arg(&beta).arg(&mut y).arg(&rows).arg(&width).arg(&eps);
        // SAFETY: the kernel's arguments; `x` and `y` have `rows` rows of `width`, `gamma` and `beta` one.
        unsafe { launch.launch(by_row(rows)) }.w()?;
        Ok(value(y, device, shape))
    })
}

/// See [`crate::ops::layer_norm_backward`].
pub fn layer_norm_backward(
    x: &Tensor,
    gamma: &Tensor,
    eps: f64,
    dy: &Tensor,
    plus: Option<&Tensor>,
) -> Result<Value> {
    let shape = x.shape();
    on_gpu!(x => x, x_layout);
    on_gpu!(gamma => gamma, gamma_layout);
    on_gpu!(dy => dy, dy_layout);
    let gamma = slice::<f32>(gamma, gamma_layout)?;
    let (count, width) = (same_count(x_layout, dy_layout)?, gamma.len());
    if x_layout.dims().last() != Some(&width) {
        bail!("layer norm of width {width} on a tensor of shape {:?}", x_layout.dims());
    }
    let plus = plus.map(Tensor::storage_and_layout);
    by_dtype!(x, T => {
        let device = x.device();
        let (rows, width, eps) = (narrow(count / width)?, narrow(width)?, eps as f32);
        let (x, dy) = (slice::<T>(x, x_layout)?, slice::<T>(dy, dy_layout)?);
        let plus = optional::<T>(&plus)?;
        if plus.as_ref().is_some_and(|plus| plus.len() != count) {
            bail!("a gradient of shape {:?} and one of another to be added to it", x_layout.dims());
        }
        let mut dx = room::<T>(device, count)?;
        let kernel = LAYER_NORM.function(device, &format!("layer_norm_backward_{}", T::SUFFIX))?;
        let stream = device.cuda_stream();
        let mut launch = stream.launch_builder(&kernel);
        launch.arg(&x).arg(&gamma).arg(&dy);
        nullable!(launch, &plus);
        launch.arg(&mut dx).arg(&rows).arg(&width).arg(&eps);
        // SAFETY: the kernel's arguments; `x`, `dy`, `plus` and `dx` have `rows` rows of `width`, `gamma` one.
        unsafe { launch.launch(by_row(rows)) }.w()?;
        Ok(value(dx, device, shape))
    })
}
