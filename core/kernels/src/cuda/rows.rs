//! Operations on the rows of a tensor, on a GPU.

use candle_core::{
    Result, Tensor, bail,
    cuda_backend::{WrapErr, cudarc::driver::PushKernelArg},
};

use super::launch::{ROWS, by_row, elements, narrow, room, value};
use crate::tape::Value;

/// A kernel of `rows.cu`; norms below `least` are taken for it.
#[derive(Clone, Copy)]
pub enum RowKernel {
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
    /// Name, number of input tensors, and the argument after the sizes.
    fn parts(self) -> (&'static str, usize, Option<f32>) {
        match self {
            Self::LogSoftmax => ("log_softmax_forward_f32", 1, None),
            Self::LogSoftmaxBackward => ("log_softmax_backward_f32", 2, None),
            Self::Unit { least } => ("unit_forward_f32", 1, Some(least)),
            Self::UnitBackward { least } => ("unit_backward_f32", 2, Some(least)),
        }
    }

    /// The kernel's value for `inputs`, all of one shape.
    pub fn of(self, inputs: &[&Tensor]) -> Result<Value> {
        let (name, expected, least) = self.parts();
        let Some(first) = inputs.first() else { bail!("{name} on no tensor") };
        let (shape, count) = (first.shape(), first.elem_count());
        let width = first.dims().last().copied().unwrap_or(0);
        if width == 0 || inputs.len() != expected || inputs.iter().any(|input| input.elem_count() != count) {
            bail!("{name} on {expected} tensors of shape {shape:?}: there are {}", inputs.len());
        }
        let device = first.device().as_cuda_device()?;
        let mut y = room::<f32>(device, count)?;
        let kernel = ROWS.function(device, name)?;
        let (rows, width) = (narrow(count / width)?, narrow(width)?);
        let guards: Vec<_> = inputs.iter().map(|input| input.storage_and_layout()).collect();
        let inputs = guards.iter().map(elements::<f32>).collect::<Result<Vec<_>>>()?;
        let stream = device.cuda_stream();
        let mut launch = stream.launch_builder(&kernel);
        for input in &inputs {
            launch.arg(input);
        }
        launch.arg(&mut y).arg(&rows).arg(&width);
        if let Some(least) = &least {
            launch.arg(least);
        }
        // SAFETY: the arguments of the kernel of that name; all tensors have `rows` rows of `width`.
        unsafe { launch.launch(by_row(rows)) }.w()?;
        Ok(value(y, device, shape))
    }
}
