//! Gathering of injected keys and values on a GPU.

use candle_core::{
    CudaDevice, DType, Result, Tensor,
    cuda_backend::{
        WrapErr,
        cudarc::driver::{CudaSlice, PushKernelArg},
    },
};

use super::launch::{Arguments, INJECTION, by_dtype, by_part, narrow, uninitialized, value, views};
use crate::tape::{Gradients, Value};

/// Copies `places` to the device.
fn on_device(places: &[usize], device: &CudaDevice) -> Result<CudaSlice<u32>> {
    let places = places.iter().map(|&place| narrow(place)).collect::<Result<Vec<_>>>()?;
    device.cuda_stream().clone_htod(&places).w()
}

/// See [`crate::gather_rows`]. The caller has checked that `own` and `shared` are float32 and that `places` are rows of
/// them.
pub fn gather_rows(
    own: &Tensor,
    shared: &Tensor,
    places: &[usize],
    own_rows: usize,
    shape: (usize, usize, usize),
    dtype: DType,
) -> Result<Value> {
    let device = own.device().as_cuda_device()?;
    let (batch, _, pair) = shape;
    let (config, table) = (by_part(places.len(), batch, 128)?, on_device(places, device)?);
    let sizes = [narrow(own_rows)?, narrow(pair / 2)?];
    views!(own: f32, shared: f32);
    by_dtype!(dtype, T => {
        let mut rows = uninitialized::<T>(device, batch * places.len() * pair / 2)?;
        let kernel = INJECTION.kernel::<T>(device, "gather_rows")?;
        let stream = device.cuda_stream();
        let mut launch = stream.launch_builder(&kernel);
        launch.arg(&own).arg(&shared).arg(&table).arg(&mut rows).numbers(&sizes);
        // SAFETY: the arguments match the kernel; the places are rows of the sources, and the output has a row for each.
        unsafe { launch.launch(config) }.w()?;
        Ok(value(rows, device, shape))
    })
}

/// Returns the gradients of both sources, `(B, O, D)` and `(1, S, D)`, for the gradient of the rows, `(B, R, 2D)`. The
/// caller has compared the shapes.
pub fn scatter_rows(
    d_rows: &Tensor,
    places: &[usize],
    own_rows: usize,
    shared_rows: usize,
) -> Result<Gradients> {
    let device = d_rows.device().as_cuda_device()?;
    let (batch, _, pair) = d_rows.dims3()?;
    let width = pair / 2;
    // An unused row has a gradient of 0.
    let all_used = places.len() == own_rows + shared_rows;
    let allocate = |count: usize| match count {
        0 => Ok(None),
        _ if all_used => uninitialized::<f32>(device, count * width).map(Some),
        _ => device.alloc_zeros::<f32>(count * width).map(Some),
    };
    let (mut d_own, mut d_shared) = (allocate(batch * own_rows)?, allocate(shared_rows)?);
    let (config, table) = (by_part(places.len(), batch, 128)?, on_device(places, device)?);
    let sizes = [narrow(own_rows)?, narrow(width)?];
    by_dtype!(d_rows.dtype(), T => {
        views!(d_rows: T);
        let kernel = INJECTION.kernel::<T>(device, "scatter_rows")?;
        let stream = device.cuda_stream();
        let mut launch = stream.launch_builder(&kernel);
        launch.arg(&d_rows).arg(&table).or_null(d_own.as_mut()).or_null(d_shared.as_mut()).numbers(&sizes);
        // SAFETY: the arguments match the kernel; the places are rows of the outputs, each once.
        unsafe { launch.launch(config) }.w()?;
    });
    let wrap = |gradient: Option<CudaSlice<f32>>, shape: (usize, usize, usize)| {
        gradient.map(|gradient| value(gradient, device, shape).tensor())
    };
    Ok((wrap(d_own, (batch, own_rows, width)), wrap(d_shared, (1, shared_rows, width))))
}
