//! Kernels whose inputs and output have the same shape: GELU, and operations on rows for losses and prompt selection.

use candle_core::{
    Result, Tensor, bail,
    cuda_backend::{WrapErr, cudarc::driver::PushKernelArg},
};

use super::launch::{
    Arguments, ELEMENTWISE, Element, Module, ROWS, by_dtype, by_row, by_vector, elements, narrow,
    uninitialized, value,
};
use crate::{storage::same_count, tape::Value};

/// Size arguments of a kernel, which follow its tensors.
enum Extent {
    /// Number of elements.
    Elements(u64),
    /// Number and width of rows, and minimum divisor of a row.
    Rows([u32; 2], Option<f32>),
}

/// See [`crate::gelu`].
pub fn gelu(x: &Tensor) -> Result<Value> {
    on_elements("gelu_forward", [x])
}

/// See [`crate::ops::gelu_backward`].
pub fn gelu_backward(x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    on_elements("gelu_backward", [x, dy]).map(Value::tensor)
}

/// See [`crate::log_softmax`].
pub fn log_softmax(x: &Tensor) -> Result<Value> {
    on_rows("log_softmax_forward", [x], None)
}

/// Returns the gradient of the input of [`log_softmax`] for the output `y` and the gradient `dy` of the output.
pub fn log_softmax_backward(y: &Tensor, dy: &Tensor) -> Result<Tensor> {
    on_rows("log_softmax_backward", [y, dy], None).map(Value::tensor)
}

/// See [`crate::l2_normalize`]. `min_norm` is the minimum divisor of a row.
pub fn l2_normalize(x: &Tensor, min_norm: f64) -> Result<Value> {
    on_rows("l2_normalize_forward", [x], Some(min_norm))
}

/// Returns the gradient of the input `x` of [`l2_normalize`] for the gradient `dy` of the output.
pub fn l2_normalize_backward(x: &Tensor, dy: &Tensor, min_norm: f64) -> Result<Tensor> {
    on_rows("l2_normalize_backward", [x, dy], Some(min_norm)).map(Value::tensor)
}

fn on_elements<const N: usize>(name: &str, inputs: [&Tensor; N]) -> Result<Value> {
    let count = inputs[0].elem_count() as u64;
    by_dtype!(inputs[0].dtype(), T => launch::<T, N>(&ELEMENTWISE, name, inputs, Extent::Elements(count)))
}

fn on_rows<const N: usize>(name: &str, inputs: [&Tensor; N], min_norm: Option<f64>) -> Result<Value> {
    let (count, width) = (inputs[0].elem_count(), inputs[0].dims().last().copied().unwrap_or(0));
    if width == 0 {
        bail!("{name}: expected rows of at least one value, found shape {:?}", inputs[0].dims());
    }
    let rows = [narrow(count / width)?, narrow(width)?];
    launch::<f32, N>(&ROWS, name, inputs, Extent::Rows(rows, min_norm.map(|norm| norm as f32)))
}

fn launch<T: Element, const N: usize>(
    module: &Module,
    name: &str,
    inputs: [&Tensor; N],
    extent: Extent,
) -> Result<Value> {
    let (first, device) = (inputs[0], inputs[0].device().as_cuda_device()?);
    inputs.iter().try_for_each(|input| same_count(first, input))?;
    let storages = inputs.map(Tensor::storage_and_layout);
    let inputs = storages.iter().map(elements::<T>).collect::<Result<Vec<_>>>()?;
    let mut y = uninitialized::<T>(device, first.elem_count())?;
    let (kernel, stream) = (module.kernel::<T>(device, name)?, device.cuda_stream());
    let mut launch = stream.launch_builder(&kernel);
    for input in &inputs {
        launch.arg(input);
    }
    launch.arg(&mut y);
    let config = match &extent {
        Extent::Elements(count) => {
            launch.arg(count);
            by_vector(first.elem_count() * size_of::<T>())
        }
        Extent::Rows(rows, min_norm) => {
            launch.numbers(rows);
            if let Some(min_norm) = min_norm {
                launch.arg(min_norm);
            }
            by_row(rows[0])
        }
    };
    // SAFETY: the arguments match the kernel of that name; all tensors have the number of elements passed to it.
    unsafe { launch.launch(config) }.w()?;
    Ok(value(y, device, first.shape()))
}
