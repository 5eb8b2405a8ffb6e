//! Injected keys and values put side by side, on a GPU.

use candle_core::{
    CudaDevice, CudaStorage, DType, Layout, Result, Storage, Tensor,
    backend::BackendStorage,
    bail,
    cuda_backend::{
        WrapErr,
        cudarc::driver::{CudaSlice, PushKernelArg},
    },
};
use half::bf16;

use super::{Element, INJECTION, by_dtype, by_image, narrow, nullable, on_gpu, room, slice, tensor};

fn on_device(places: &[usize], device: &CudaDevice) -> Result<CudaSlice<u32>> {
    let places = places.iter().map(|&place| narrow(place)).collect::<Result<Vec<_>>>()?;
    device.cuda_stream().clone_htod(&places).w()
}

/// Prompts, always float32.
type Prompts<'a> = Option<(&'a CudaStorage, &'a Layout)>;

/// See [`crate::side_by_side`]. The caller has compared the shapes: `places` are rows of the sources.
pub(crate) fn gather_rows(
    own: Prompts<'_>,
    shared: Prompts<'_>,
    places: &[usize],
    (batch, own_rows, width): (usize, usize, usize),
    dtype: DType,
) -> Result<CudaStorage> {
    match dtype {
        DType::F32 => gather::<f32>(own, shared, places, (batch, own_rows, width)),
        DType::BF16 => gather::<bf16>(own, shared, places, (batch, own_rows, width)),
        other => bail!("injected rows of {other:?} on a GPU, expected f32 or bf16"),
    }
}

fn gather<T: Element>(
    own: Prompts<'_>,
    shared: Prompts<'_>,
    places: &[usize],
    (batch, own_rows, width): (usize, usize, usize),
) -> Result<CudaStorage> {
    let Some((storage, _)) = own.or(shared) else { bail!("injected rows that come from nowhere") };
    let device = storage.device();
    let own = own.map(|(storage, layout)| slice::<f32>(storage, layout)).transpose()?;
    let shared = shared.map(|(storage, layout)| slice::<f32>(storage, layout)).transpose()?;
    let mut rows = room::<T>(device, batch * places.len() * width)?;
    let kernel = INJECTION.function(device, &format!("gather_rows_{}", T::SUFFIX))?;
    let config = by_image(places.len(), batch)?;
    let places = on_device(places, device)?;
    let (own_rows, width) = (narrow(own_rows)?, narrow(width)?);
    let stream = device.cuda_stream();
    let mut launch = stream.launch_builder(&kernel);
    nullable!(launch, &own);
    nullable!(launch, &shared);
    launch.arg(&places).arg(&mut rows).arg(&own_rows).arg(&width);
    // SAFETY: the kernel's arguments; the places are rows of the sources, and the output has a row for each.
    unsafe { launch.launch(config) }.w()?;
    Ok(CudaStorage::wrap_cuda_slice(rows, device.clone()))
}

/// Gradients of both sources, `(B, O, D)` and `(1, S, D)`, for that of the rows, `(B, R, 2D)`. The caller has compared the
/// shapes.
pub(crate) fn scatter_rows(
    d_rows: &Tensor,
    places: &[usize],
    own_rows: usize,
    shared_rows: usize,
) -> Result<(Option<Tensor>, Option<Tensor>)> {
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
            slice.map(|slice| tensor(CudaStorage::wrap_cuda_slice(slice, device.clone()), shape))
        };
        Ok((wrap(d_own, (batch, own_rows, width)), wrap(d_shared, (1, shared_rows, width))))
    })
}
