//! Operations on rows of numbers, and many tensors as one row, on a GPU.

use candle_core::{
    CudaDevice, CudaStorage, Layout, Result, Storage, Tensor, Var,
    backend::BackendStorage,
    bail,
    cuda_backend::{
        WrapErr,
        cudarc::driver::{CudaSlice, DevicePtr, LaunchConfig, PushKernelArg},
    },
};

use super::{FLAT, ROWS, by_row, narrow, on_gpu, room, slice, tensor};

/// `y` for each row of `x`, by the kernel of that name; `least` is its last argument, if it has one more.
pub(in crate::ops) fn of_rows(
    kernel: &str,
    (x, layout): (&CudaStorage, &Layout),
    least: Option<f32>,
) -> Result<CudaStorage> {
    let device = x.device();
    let (count, width) = sizes(layout)?;
    let (x, mut y) = (slice::<f32>(x, layout)?, room::<f32>(device, count)?);
    let kernel = ROWS.function(device, kernel)?;
    let (rows, width) = (narrow(count / width)?, narrow(width)?);
    let stream = device.cuda_stream();
    let mut launch = stream.launch_builder(&kernel);
    launch.arg(&x).arg(&mut y).arg(&rows).arg(&width);
    if let Some(least) = &least {
        launch.arg(least);
    }
    // SAFETY: the kernel's arguments; `x` and `y` have `rows` rows of `width`.
    unsafe { launch.launch(by_row(rows)) }.w()?;
    Ok(CudaStorage::wrap_cuda_slice(y, device.clone()))
}

/// The same for each pair of rows.
pub(in crate::ops) fn of_pairs_of_rows(
    kernel: &str,
    a: &Tensor,
    b: &Tensor,
    least: Option<f32>,
) -> Result<Tensor> {
    if a.shape() != b.shape() {
        bail!("rows of shapes {:?} and {:?}", a.dims(), b.dims());
    }
    on_gpu!(a => a_storage, a_layout);
    on_gpu!(b => b_storage, b_layout);
    let device = a_storage.device();
    let (count, width) = sizes(a_layout)?;
    let (first, second) = (slice::<f32>(a_storage, a_layout)?, slice::<f32>(b_storage, b_layout)?);
    let mut y = room::<f32>(device, count)?;
    let kernel = ROWS.function(device, kernel)?;
    let (rows, width) = (narrow(count / width)?, narrow(width)?);
    let stream = device.cuda_stream();
    let mut launch = stream.launch_builder(&kernel);
    launch.arg(&first).arg(&second).arg(&mut y).arg(&rows).arg(&width);
    if let Some(least) = &least {
        launch.arg(least);
    }
    // SAFETY: the kernel's arguments; all three have `rows` rows of `width`.
    unsafe { launch.launch(by_row(rows)) }.w()?;
    Ok(tensor(CudaStorage::wrap_cuda_slice(y, device.clone()), a.shape()))
}

/// How many numbers there are, and how many in a row.
fn sizes(layout: &Layout) -> Result<(usize, usize)> {
    match layout.dims().last() {
        Some(&width) if width > 0 => Ok((layout.shape().elem_count(), width)),
        _ => bail!("rows of no numbers, in a tensor of shape {:?}", layout.dims()),
    }
}

/// Blocks of 256 threads for each tensor: four numbers a thread, up to what fills any card.
fn by_piece(pieces: usize, longest: usize) -> Result<LaunchConfig> {
    let blocks = longest.div_ceil(1024).clamp(1, 512);
    Ok(LaunchConfig {
        grid_dim: (narrow(blocks)?, narrow(pieces)?, 1),
        block_dim: (256, 1, 1),
        shared_mem_bytes: 0,
    })
}

/// The table that the kernels read, and how they are launched. The tensors are contiguous.
fn pieces(tensors: &[&Tensor], device: &CudaDevice) -> Result<(CudaSlice<u64>, LaunchConfig)> {
    let stream = device.cuda_stream();
    let mut table = Vec::with_capacity(2 * tensors.len() + 1);
    for tensor in tensors {
        on_gpu!(tensor => storage, layout);
        table.push(slice::<f32>(storage, layout)?.device_ptr(&stream).0);
    }
    let mut begin = 0;
    table.push(begin);
    for tensor in tensors {
        begin += tensor.elem_count() as u64;
        table.push(begin);
    }
    let longest = tensors.iter().map(|tensor| tensor.elem_count()).max().unwrap_or(0);
    Ok((stream.clone_htod(&table).w()?, by_piece(tensors.len(), longest)?))
}

/// See [`crate::ops::flat`].
pub(in crate::ops) fn flat(tensors: &[&Tensor], device: &CudaDevice) -> Result<Tensor> {
    let tensors = tensors.iter().map(|tensor| tensor.contiguous()).collect::<Result<Vec<_>>>()?;
    let count = tensors.iter().map(Tensor::elem_count).sum::<usize>();
    let (table, config) = pieces(&tensors.iter().collect::<Vec<_>>(), device)?;
    let mut row = room::<f32>(device, count)?;
    let kernel = FLAT.function(device, "gather_flat_f32")?;
    let stream = device.cuda_stream();
    let mut launch = stream.launch_builder(&kernel);
    launch.arg(&table).arg(&mut row);
    // SAFETY: the kernel's arguments; the table names memory of tensors that live until this is queued on the stream that
    // frees them, and the row is as long as all of them.
    unsafe { launch.launch(config) }.w()?;
    Ok(tensor(CudaStorage::wrap_cuda_slice(row, device.clone()), count))
}

/// See [`crate::ops::set_from_flat`].
pub(in crate::ops) fn set_from_flat(vars: &[&Var], row: &Tensor) -> Result<()> {
    let tensors: Vec<&Tensor> = vars.iter().map(|var| var.as_tensor()).collect();
    if row.elem_count() != tensors.iter().map(|tensor| tensor.elem_count()).sum::<usize>() {
        bail!("{} numbers for variables of another number in all", row.elem_count());
    }
    on_gpu!(row => storage, layout);
    let device = storage.device();
    let (table, config) = pieces(&tensors, device)?;
    let row = slice::<f32>(storage, layout)?;
    let kernel = FLAT.function(device, "scatter_flat_f32")?;
    let stream = device.cuda_stream();
    let mut launch = stream.launch_builder(&kernel);
    launch.arg(&table).arg(&row);
    // SAFETY: the kernel's arguments; the table names the memory of the variables, contiguous and together as long as the
    // row. Work that reads them is queued on the same stream, before or after this.
    unsafe { launch.launch(config) }.w()?;
    Ok(())
}
