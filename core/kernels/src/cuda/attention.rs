//! Multi-head attention on a GPU.

use candle_core::{
    CudaDevice, Result, Tensor, bail,
    cuda_backend::{
        WrapErr,
        cudarc::driver::{
            CudaFunction, LaunchConfig, PushKernelArg,
            sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
        },
    },
};

use super::launch::{
    ATTENTION, Arguments, Element, by_dtype, grid, narrow, optional, uninitialized, value, views,
};
use crate::{
    ops::{Attended, Sizes},
    tape::Value,
};

/// Kernels of attention, each with blocks of 64 rows: of queries in the forward pass, of queries or of keys in the
/// backward pass.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kernel {
    Forward,
    BackwardQueries,
    BackwardKeys,
}

/// Loads a kernel of attention. Returns it with its launch configuration.
fn load<T: Element>(device: &CudaDevice, kernel: Kernel, s: &Sizes) -> Result<(CudaFunction, LaunchConfig)> {
    let Some(padded) = [32, 64, 96, 128].into_iter().find(|&padded| padded >= s.head) else {
        bail!("attention on a GPU: expected heads of at most 128 channels, found {}", s.head)
    };
    let arithmetic = T::arithmetic();
    let backward = if kernel == Kernel::BackwardKeys { "backward_keys" } else { "backward_queries" };
    let (name, rows, columns) = match (kernel, arithmetic, padded) {
        (Kernel::Forward, "bf16", _) => ("forward", 64, 64),
        (Kernel::Forward, _, ..=64) => ("forward", 64, 32),
        (Kernel::Forward, ..) => ("forward", 64, 16),
        (_, "bf16", _) | (_, _, ..=64) => (backward, 128, 32),
        _ => (backward, 128, 16),
    };
    let stride = if arithmetic == "bf16" { padded + 8 } else { padded + 4 };
    let mut bytes = size_of::<T>() * stride * (rows + 2 * columns);
    if arithmetic == "f32" {
        bytes += 256 * (columns + 4);
    }
    if kernel == Kernel::BackwardKeys {
        bytes += 8 * columns;
    }
    let function = ATTENTION.function(device, &format!("attention_{name}_{arithmetic}_{padded}"))?;
    // A block can use 48 KiB of shared memory unless this attribute raises the limit.
    if bytes > 48 * 1024 {
        function.set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes as i32).w()?;
    }
    let rows = if kernel == Kernel::BackwardKeys { s.keys() } else { s.tokens };
    let config = LaunchConfig {
        grid_dim: (narrow(rows.div_ceil(64))?, narrow(s.heads)?, narrow(s.batch)?),
        block_dim: (128, 1, 1),
        shared_mem_bytes: narrow(bytes)?,
    };
    Ok((function, config))
}

/// Returns the sizes as kernel arguments: numbers of images, tokens, injected rows and heads, and width of a head.
fn numbers(s: &Sizes) -> Result<[u32; 5]> {
    Ok([narrow(s.batch)?, narrow(s.tokens)?, narrow(s.extra)?, narrow(s.heads)?, narrow(s.head)?])
}

/// Computes the output and the logarithms of the sums of exponentials, see [`crate::ops::attend`].
pub fn attend(qkv: &Tensor, extra: Option<&Tensor>, heads: usize) -> Result<(Value, Option<Tensor>)> {
    let s = Sizes::new(qkv.layout(), extra.map(Tensor::layout), heads)?;
    let (device, sizes) = (qkv.device().as_cuda_device()?, numbers(&s)?);
    let extra = extra.map(Tensor::storage_and_layout);
    by_dtype!(qkv.dtype(), T => {
        views!(qkv: T);
        let extra = optional::<T>(&extra)?;
        let mut y = uninitialized::<T>(device, s.batch * s.tokens * s.width)?;
        let mut log_sums = uninitialized::<f32>(device, s.batch * s.heads * s.tokens)?;
        let (function, config) = load::<T>(device, Kernel::Forward, &s)?;
        let stream = device.cuda_stream();
        let mut launch = stream.launch_builder(&function);
        launch.arg(&qkv).or_null(extra.as_ref()).arg(&mut y).arg(&mut log_sums).numbers(&sizes);
        // SAFETY: the arguments match the kernel; `Sizes` has compared the shapes and gives the sizes of the outputs.
        unsafe { launch.arg(&(s.scale() as f32)).launch(config) }.w()?;
        let log_sums = value(log_sums, device, (s.batch, s.heads, s.tokens)).tensor();
        Ok((value(y, device, (s.batch, s.tokens, s.width)), Some(log_sums)))
    })
}

/// See [`crate::ops::attend_backward`].
pub fn attend_backward(
    qkv: &Tensor,
    extra: Option<&Tensor>,
    attended: &Attended,
    dy: &Tensor,
    heads: usize,
) -> Result<(Tensor, Option<Tensor>)> {
    let s = Sizes::new(qkv.layout(), extra.map(Tensor::layout), heads)?;
    let Attended { y, log_sums: Some(log_sums) } = attended else {
        bail!("attention: the forward pass kept no log_sums")
    };
    let (device, shape) = (qkv.device().as_cuda_device()?, (s.batch, s.tokens, s.width));
    if y.dims3()? != shape || dy.dims3()? != shape || log_sums.dims3()? != (s.batch, s.heads, s.tokens) {
        bail!("attention: expected a gradient of the output's shape {shape:?}, found {:?}", dy.dims());
    }
    let extra = extra.map(Tensor::storage_and_layout);
    let sizes @ [batch, tokens, _, heads, head] = numbers(&s)?;
    by_dtype!(qkv.dtype(), T => {
        views!(qkv: T, y: T, dy: T, log_sums: f32);
        let (extra, stream) = (optional::<T>(&extra)?, device.cuda_stream());

        let of_heads = s.batch * s.tokens * s.heads;
        let mut delta = uninitialized::<f32>(device, of_heads)?;
        let function = ATTENTION.kernel::<T>(device, "attention_delta")?;
        let mut launch = stream.launch_builder(&function);
        launch.arg(&y).arg(&dy).arg(&mut delta).arg(&batch).arg(&tokens).arg(&heads).arg(&head);
        // SAFETY: the arguments match the kernel; shapes were compared above.
        unsafe { launch.launch(grid((narrow(of_heads.div_ceil(16))?, 1, 1), 128)) }.w()?;

        let mut d_qkv = uninitialized::<T>(device, s.batch * s.tokens * 3 * s.width)?;
        let extra_count = s.batch * s.extra * 2 * s.width;
        let mut d_extra = extra.as_ref().map(|_| uninitialized::<T>(device, extra_count)).transpose()?;
        for kernel in [Kernel::BackwardQueries, Kernel::BackwardKeys] {
            let (function, config) = load::<T>(device, kernel, &s)?;
            let mut launch = stream.launch_builder(&function);
            launch.arg(&qkv).or_null(extra.as_ref()).arg(&dy).arg(&log_sums).arg(&delta).arg(&mut d_qkv);
            if kernel == Kernel::BackwardKeys {
                launch.or_null(d_extra.as_mut());
            }
            launch.numbers(&sizes);
            // SAFETY: the arguments match the kernel; the first kernel writes the gradients of queries in `d_qkv`, the
            // second the rest of `d_qkv` and `d_extra`, which has a row for each row of `extra`.
            unsafe { launch.arg(&(s.scale() as f32)).launch(config) }.w()?;
        }

        let d_qkv = value(d_qkv, device, (s.batch, s.tokens, 3 * s.width)).tensor();
        let of_extra = (s.batch, s.extra, 2 * s.width);
        Ok((d_qkv, d_extra.map(|d_extra| value(d_extra, device, of_extra).tensor())))
    })
}
