//! Many tensors as one flat row, and back, on a GPU.

use candle_core::{
    CudaDevice, Result, Storage, Tensor, Var,
    backend::BackendStorage,
    bail,
    cuda_backend::{
        WrapErr,
        cudarc::driver::{CudaSlice, CudaView, DevicePtr, LaunchConfig, PushKernelArg},
    },
};

use super::launch::{FLAT, narrow, on_gpu, room, second, slice, value};

/// Blocks of 256 threads for each tensor: four numbers a thread, up to what fills any card.
fn by_piece(pieces: usize, longest: usize) -> Result<LaunchConfig> {
    let blocks = longest.div_ceil(1024).clamp(1, 512);
    Ok(LaunchConfig {
        grid_dim: (narrow(blocks)?, second(pieces)?, 1),
        block_dim: (256, 1, 1),
        shared_mem_bytes: 0,
    })
}

/// The table that the kernels of `flat.cu` read, how they are launched, and how long the row is.
fn pieces<'a>(
    tensors: impl Iterator<Item = &'a Tensor>,
    device: &CudaDevice,
) -> Result<(CudaSlice<u64>, LaunchConfig, usize)> {
    let stream = device.cuda_stream();
    let (mut places, mut ends, mut longest) = (Vec::new(), vec![0], 0);
    for tensor in tensors {
        on_gpu!(tensor => storage, layout);
        if storage.device().id() != device.id() {
            bail!("tensors on several GPUs as one row");
        }
        let numbers: CudaView<'_, f32> = slice(storage, layout)?;
        places.push(numbers.device_ptr(&stream).0);
        ends.push(ends[ends.len() - 1] + numbers.len() as u64);
        longest = longest.max(numbers.len());
    }
    let (count, row) = (places.len(), ends[ends.len() - 1] as usize);
    places.extend(ends);
    Ok((stream.clone_htod(&places).w()?, by_piece(count, longest)?, row))
}

/// See [`crate::flat`].
pub fn flat(tensors: &[&Tensor]) -> Result<Tensor> {
    let tensors = tensors.iter().map(|tensor| tensor.contiguous()).collect::<Result<Vec<_>>>()?;
    let Some(first) = tensors.first() else { bail!("a row of no tensors") };
    on_gpu!(first => storage, _layout);
    let device = storage.device();
    let (table, config, count) = pieces(tensors.iter(), device)?;
    let mut row = room::<f32>(device, count)?;
    let kernel = FLAT.function(device, "gather_flat_f32")?;
    let stream = device.cuda_stream();
    let mut launch = stream.launch_builder(&kernel);
    launch.arg(&table).arg(&mut row);
    // SAFETY: the kernel's arguments; the table names memory of this device, of tensors that live until this is queued on the
    // stream that frees them, and the row is as long as all of them.
    unsafe { launch.launch(config) }.w()?;
    Ok(value(row, device, count).tensor())
}

/// See [`crate::set_from_flat`].
pub fn set_from_flat(vars: &[&Var], row: &Tensor) -> Result<()> {
    on_gpu!(row => storage, layout);
    let device = storage.device();
    let (table, config, count) = pieces(vars.iter().map(|var| var.as_tensor()), device)?;
    let row = slice::<f32>(storage, layout)?;
    if row.len() != count {
        bail!("{} numbers for variables of {count}", row.len());
    }
    let kernel = FLAT.function(device, "scatter_flat_f32")?;
    let stream = device.cuda_stream();
    let mut launch = stream.launch_builder(&kernel);
    launch.arg(&table).arg(&row);
    // SAFETY: the kernel's arguments; the table names memory of this device, of the variables, contiguous and together as
    // long as the row. Work that reads them is queued on the same stream, before or after this.
    unsafe { launch.launch(config) }.w()?;
    Ok(())
}
