//! Conversion of many tensors to one flat row, and back, on a GPU.

use candle_core::{
    CudaDevice, Result, Tensor, Var, bail,
    cuda_backend::{
        WrapErr,
        cudarc::driver::{CudaSlice, DevicePtr, LaunchConfig, PushKernelArg},
    },
};

use super::launch::{FLAT, by_part, uninitialized, value, views};

/// Returns the table that the kernels of `flat.cu` read, their launch configuration, and the length of the row.
fn piece_table<'a>(
    tensors: impl Iterator<Item = &'a Tensor>,
    device: &CudaDevice,
) -> Result<(CudaSlice<u64>, LaunchConfig, usize)> {
    let stream = device.cuda_stream();
    let (mut places, mut ends, mut row, mut longest) = (Vec::new(), vec![0], 0, 0);
    for tensor in tensors {
        if tensor.device().as_cuda_device()?.id() != device.id() {
            bail!("expected all tensors on one GPU");
        }
        views!(tensor: f32);
        row += tensor.len();
        longest = longest.max(tensor.len());
        places.push(tensor.device_ptr(&stream).0);
        ends.push(row as u64);
    }
    // Four values per thread, up to the number of threads that any GPU can run at once.
    let config = by_part(longest.div_ceil(1024).clamp(1, 512), places.len(), 256)?;
    places.extend(ends);
    Ok((stream.clone_htod(&places).w()?, config, row))
}

/// See [`crate::flat`].
pub fn flat(tensors: &[&Tensor]) -> Result<Tensor> {
    let tensors = tensors.iter().map(|tensor| tensor.contiguous()).collect::<Result<Vec<_>>>()?;
    let Some(first) = tensors.first() else { bail!("expected at least one tensor") };
    let device = first.device().as_cuda_device()?;
    let (table, config, count) = piece_table(tensors.iter(), device)?;
    let mut row = uninitialized::<f32>(device, count)?;
    let kernel = FLAT.kernel::<f32>(device, "gather_flat")?;
    let stream = device.cuda_stream();
    // SAFETY: the arguments match the kernel; the table contains addresses on this device of tensors that live until
    // the launch is queued on the stream that also frees them; the row is as long as all of them together.
    unsafe { stream.launch_builder(&kernel).arg(&table).arg(&mut row).launch(config) }.w()?;
    Ok(value(row, device, count).tensor())
}

/// See [`crate::assign_from_flat`].
pub fn assign_from_flat(vars: &[&Var], row: &Tensor) -> Result<()> {
    let device = row.device().as_cuda_device()?;
    let (table, config, count) = piece_table(vars.iter().map(|var| var.as_tensor()), device)?;
    views!(row: f32);
    if row.len() != count {
        bail!("expected a row of {count} values, the size of all variables, found {}", row.len());
    }
    let kernel = FLAT.kernel::<f32>(device, "scatter_flat")?;
    let stream = device.cuda_stream();
    // SAFETY: the arguments match the kernel; the table contains addresses on this device of the variables, which are
    // contiguous and together as long as the row. Work that reads them is queued on the same stream.
    unsafe { stream.launch_builder(&kernel).arg(&table).arg(&row).launch(config) }.w()?;
    Ok(())
}
