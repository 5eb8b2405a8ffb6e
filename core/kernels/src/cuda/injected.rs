//! Injected keys and values side by side, on a GPU.

use candle_core::{
    CudaDevice, DType, Result, Storage, Tensor,
    backend::BackendStorage,
    bail,
    cuda_backend::{
        WrapErr,
        cudarc::driver::{CudaSlice, PushKernelArg},
    },
};
use half::bf16;

use super::launch::{Element, INJECTION, by_dtype, by_image, narrow, nullable, on_gpu, room, slice, value};
use crate::tape::{Gradients, Value};

fn on_device(places: &[usize], device: &CudaDevice) -> Result<CudaSlice<u32>> {
    let places = places.iter().map(|&place| narrow(place)).collect::<Result<Vec<_>>>()?;
    device.cuda_stream().clone_htod(&places).w()
}

/// See [`crate::gather_rows`]. `own` and `shared` are float32, `places` rows of them, as the caller has found.
pub fn gather_rows(
    own: &Tensor,
    shared: &Tensor,
    places: &[usize],
    own_rows: usize,
    shape: (usize, usize, usize),
    dtype: DType,
) -> Result<Value> {
    match dtype {
        DType::F32 => gather::<f32>(own, shared, places, own_rows, shape),
        DType::BF16 => gather::<bf16>(own, shared, places, own_rows, shape),
        other => bail!("injected rows of {other:?} on a GPU, expected f32 or bf16"),
    }
}

fn gather<T: Element>(
    own: &Tensor,
    shared: &Tensor,
    places: &[usize],
    own_rows: usize,
    shape: (usize, usize, usize),
) -> Result<Value> {
    on_gpu!(own => own, own_layout);
    on_gpu!(shared => shared, shared_layout);
    let device = own.device();
    let (own, shared) = (slice::<f32>(own, own_layout)?, slice::<f32>(shared, shared_layout)?);
    let (batch, _, pair) = shape;
    let width = pair / 2;
    let mut rows = room::<T>(device, batch * places.len() * width)?;
    let kernel = INJECTION.function(device, &format!("gather_rows_{}", T::SUFFIX))?;
    let config = by_image(places.len(), batch)?;
    let places = on_device(places, device)?;
    let (own_rows, width) = (narrow(own_rows)?, narrow(width)?);
    let stream = device.cuda_stream();
    let mut launch = stream.launch_builder(&kernel);
    launch.arg(&own).arg(&shared).arg(&places).arg(&mut rows).arg(&own_rows).arg(&width);
    // SAFETY: the kernel's arguments; the places are rows of the sources, and the output has a row for each.
    unsafe { launch.launch(config) }.w()?;
    Ok(value(rows, device, shape))
}

/// Gradients of both sources, `(B, O, D)` and `(1, S, D)`, for that of the rows, `(B, R, 2D)`. The caller has compared the
/// shapes.
pub fn scatter_rows(
    d_rows: &Tensor,
    places: &[usize],
    own_rows: usize,
    shared_rows: usize,
) -> Result<Gradients> {
    let (batch, _, pair) = d_rows.dims3()?;
    let width = pair / 2;
    // A row that is taken nowhere has a gradient of 0.
    let all_taken = places.len() == own_rows + shared_rows;
    on_gpu!(d_rows => storage, layout);
    by_dtype!(storage, T => {
        let device = storage.device();
        let d_rows = slice::<T>(storage, layout)?;
        let made = |count: usize| match count {
            0 => Ok(None),
            _ if all_taken => room::<f32>(device, count * width).map(Some),
            _ => device.alloc_zeros::<f32>(count * width).map(Some),
        };
        let (mut d_own, mut d_shared) = (made(batch * own_rows)?, made(shared_rows)?);
        let kernel = INJECTION.function(device, &format!("scatter_rows_{}", T::SUFFIX))?;
        let config = by_image(places.len(), batch)?;
        let places = on_device(places, device)?;
        let (first_shared, columns) = (narrow(own_rows)?, narrow(width)?);
        let stream = device.cuda_stream();
        let mut launch = stream.launch_builder(&kernel);
        launch.arg(&d_rows).arg(&places);
        nullable!(launch, &mut d_own);
        nullable!(launch, &mut d_shared);
        launch.arg(&first_shared).arg(&columns);
        // SAFETY: the kernel's arguments; the places are rows of the outputs, each once.
        unsafe { launch.launch(config) }.w()?;
        let wrap = |slice: Option<CudaSlice<f32>>, shape: (usize, usize, usize)| {
            slice.map(|slice| value(slice, device, shape).tensor())
        };
        Ok((wrap(d_own, (batch, own_rows, width)), wrap(d_shared, (1, shared_rows, width))))
    })
}
