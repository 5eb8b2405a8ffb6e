//! The Gaussian error linear unit on a GPU.

use candle_core::{
    Result, Storage, Tensor,
    backend::BackendStorage,
    bail,
    cuda_backend::{WrapErr, cudarc::driver::PushKernelArg},
};

use super::launch::{ELEMENTWISE, Element, by_dtype, elementwise, on_gpu, room, same_count, slice, value};
use crate::tape::Value;

/// See [`crate::gelu`].
pub fn gelu(x: &Tensor) -> Result<Value> {
    let shape = x.shape();
    on_gpu!(x => x, layout);
    by_dtype!(x, T => {
        let device = x.device();
        let count = layout.shape().elem_count();
        let (x, mut y) = (slice::<T>(x, layout)?, room::<T>(device, count)?);
        let kernel = ELEMENTWISE.function(device, &format!("gelu_forward_{}", T::SUFFIX))?;
        let (stream, n) = (device.cuda_stream(), count as u64);
        let mut launch = stream.launch_builder(&kernel);
        launch.arg(&x).arg(&mut y).arg(&n);
        // SAFETY: the kernel's arguments, and as many elements in each as it is told.
        unsafe { launch.launch(elementwise(count, size_of::<T>())) }.w()?;
        Ok(value(y, device, shape))
    })
}

/// See [`crate::ops::gelu_backward`].
pub fn gelu_backward(x: &Tensor, dy: &Tensor) -> Result<Value> {
    let shape = x.shape();
    on_gpu!(x => x, x_layout);
    on_gpu!(dy => dy, dy_layout);
    by_dtype!(x, T => {
        let device = x.device();
        let count = same_count(x_layout, dy_layout)?;
        let (x, dy) = (slice::<T>(x, x_layout)?, slice::<T>(dy, dy_layout)?);
        let mut dx = room::<T>(device, count)?;
        let kernel = ELEMENTWISE.function(device, &format!("gelu_backward_{}", T::SUFFIX))?;
        let (stream, n) = (device.cuda_stream(), count as u64);
        let mut launch = stream.launch_builder(&kernel);
        launch.arg(&x).arg(&dy).arg(&mut dx).arg(&n);
        // SAFETY: the kernel's arguments, and as many elements in each as it is told.
        unsafe { launch.launch(elementwise(count, size_of::<T>())) }.w()?;
        Ok(value(dx, device, shape))
    })
}
