//! Layer normalisation on a GPU, of tensors whose sizes the caller has compared.

use candle_core::{
    Result, Tensor,
    cuda_backend::{WrapErr, cudarc::driver::PushKernelArg},
};

use super::launch::{Arguments, LAYER_NORM, by_dtype, by_row, narrow, optional, uninitialized, value, views};
use crate::tape::Value;

/// See [`crate::layer_norm`]. `gamma` and `beta` are float32 for every type of `x`.
pub fn layer_norm(x: &Tensor, gamma: &Tensor, beta: &Tensor, eps: f64) -> Result<Value> {
    let (shape, device, sizes) = (x.shape(), x.device().as_cuda_device()?, sizes(x, gamma)?);
    by_dtype!(x.dtype(), T => {
        views!(x: T, gamma: f32, beta: f32);
        let mut y = uninitialized::<T>(device, shape.elem_count())?;
        let kernel = LAYER_NORM.kernel::<T>(device, "layer_norm_forward")?;
        let stream = device.cuda_stream();
        let mut launch = stream.launch_builder(&kernel);
        launch.arg(&x).arg(&gamma).arg(&beta).arg(&mut y).numbers(&sizes);
        // SAFETY: the arguments match the kernel; `x` and `y` have the same sizes, `gamma` and `beta` are one row.
        unsafe { launch.arg(&(eps as f32)).launch(by_row(sizes[0])) }.w()?;
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
) -> Result<Tensor> {
    let (shape, device, sizes) = (x.shape(), x.device().as_cuda_device()?, sizes(x, gamma)?);
    let plus = plus.map(Tensor::storage_and_layout);
    by_dtype!(x.dtype(), T => {
        views!(x: T, gamma: f32, dy: T);
        let plus = optional::<T>(&plus)?;
        let mut dx = uninitialized::<T>(device, shape.elem_count())?;
        let kernel = LAYER_NORM.kernel::<T>(device, "layer_norm_backward")?;
        let stream = device.cuda_stream();
        let mut launch = stream.launch_builder(&kernel);
        launch.arg(&x).arg(&gamma).arg(&dy).or_null(plus.as_ref()).arg(&mut dx).numbers(&sizes);
        // SAFETY: the arguments match the kernel; `x`, `dy`, `plus` and `dx` have the same sizes, `gamma` is one row.
        unsafe { launch.arg(&(eps as f32)).launch(by_row(sizes[0])) }.w()?;
        Ok(value(dx, device, shape).tensor())
    })
}

/// Returns number and width of the rows of `x`.
fn sizes(x: &Tensor, gamma: &Tensor) -> Result<[u32; 2]> {
    Ok([narrow(x.elem_count() / gamma.elem_count())?, narrow(gamma.elem_count())?])
}
