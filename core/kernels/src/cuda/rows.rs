//! Operations on rows of numbers, and many tensors as one row, on a GPU.

use candle_core::{
    CudaDevice, CudaStorage, Layout, Result, Shape, Storage, Tensor, Var,
    backend::BackendStorage,
    bail,
    cuda_backend::{
        WrapErr,
        cudarc::driver::{CudaSlice, CudaView, DevicePtr, LaunchConfig, PushKernelArg},
    },
};

use super::{FLAT, ROWS, by_row, narrow, on_gpu, room, second, slice, tensor};

/// A kernel of `rows.cu`; norms below `least` are taken for it.
#[derive(Clone, Copy)]
pub(crate) enum RowKernel {
    LogSoftmax,
    /// Of output and its gradient.
    LogSoftmaxBackward,
    Unit {
        least: f32,
    },
    /// Of input and the output's gradient.
    UnitBackward {
        least: f32,
    },
}

impl RowKernel {
    /// Name, how many tensors go in, and the argument after the sizes.
    fn parts(self) -> (&'static str, usize, Option<f32>) {
        match self {
            Self::LogSoftmax => ("log_softmax_forward_f32", 1, None),
            Self::LogSoftmaxBackward => ("log_softmax_backward_f32", 2, None),
            Self::Unit { least } => ("unit_forward_f32", 1, Some(least)),
            Self::UnitBackward { least } => ("unit_backward_f32", 2, Some(least)),
        }
    }

    /// What it gives for `x`.
    pub(crate) fn of(self, x: &CudaStorage, layout: &Layout) -> Result<CudaStorage> {
        self.launch(x.device(), layout.shape(), &[slice(x, layout)?])
    }

    /// What it gives for `a` and `b`.
    pub(crate) fn of_both(self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        on_gpu!(a => a_storage, a_layout);
        on_gpu!(b => b_storage, b_layout);
        let both = [slice(a_storage, a_layout)?, slice(b_storage, b_layout)?];
        Ok(tensor(self.launch(a_storage.device(), a.shape(), &both)?, a.shape()))
    }

    fn launch(self, device: &CudaDevice, shape: &Shape, inputs: &[CudaView<'_, f32>]) -> Result<CudaStorage> {
        let (name, expected, least) = self.parts();
        let (count, width) = (shape.elem_count(), shape.dims().last().copied().unwrap_or(0));
        if width == 0 || inputs.len() != expected || inputs.iter().any(|input| input.len() != count) {
            bail!("{name} on {expected} tensors of shape {shape:?}: there are {}", inputs.len());
        }
        let mut y = room::<f32>(device, count)?;
        let kernel = ROWS.function(device, name)?;
        let (rows, width) = (narrow(count / width)?, narrow(width)?);
        let stream = device.cuda_stream();
        let mut launch = stream.launch_builder(&kernel);
        for input in inputs {
            launch.arg(input);
        }
        launch.arg(&mut y).arg(&rows).arg(&width);
        if let Some(least) = &least {
            launch.arg(least);
        }
        // SAFETY: the arguments of the kernel of that name; all tensors have `rows` rows of `width`.
        unsafe { launch.launch(by_row(rows)) }.w()?;
        Ok(CudaStorage::wrap_cuda_slice(y, device.clone()))
    }
}

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
pub(crate) fn flat(tensors: &[&Tensor]) -> Result<Tensor> {
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
    Ok(tensor(CudaStorage::wrap_cuda_slice(row, device.clone()), count))
}

/// See [`crate::set_from_flat`].
pub(crate) fn set_from_flat(vars: &[&Var], row: &Tensor) -> Result<()> {
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
