//! Multi-head attention on a GPU.

use candle_core::{
    CudaDevice, Result, Storage, Tensor,
    backend::BackendStorage,
    bail,
    cuda_backend::{
        WrapErr,
        cudarc::driver::{
            CudaFunction, LaunchConfig, PushKernelArg,
            sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
        },
    },
};

use super::launch::{ATTENTION, Element, by_dtype, narrow, nullable, on_gpu, optional, room, slice, value};
use crate::{ops::attention_sizes::Sizes, tape::Value};

/// One of attention's kernels, and how it is launched.
struct Kernel {
    function: CudaFunction,
    config: LaunchConfig,
}

/// Sides of attention that a block of 64 rows can belong to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Forward,
    Queries,
    Keys,
}

impl Kernel {
    fn new<T: Element>(device: &CudaDevice, side: Side, s: &Sizes) -> Result<Self> {
        let Some(padded) = [32, 64, 96, 128].into_iter().find(|&padded| padded >= s.head) else {
            bail!("attention on a GPU with heads of {} channels, expected 128 or fewer", s.head)
        };
        let products = T::products();
        let (name, rows, columns) = match (side, products, padded) {
            (Side::Forward, "bf16", _) => ("forward", 64, 64),
            (Side::Forward, _, ..=64) => ("forward", 64, 32),
            (Side::Forward, ..) => ("forward", 64, 16),
            (Side::Queries, "bf16", _) | (Side::Queries, _, ..=64) => ("backward_queries", 128, 32),
            (Side::Queries, ..) => ("backward_queries", 128, 16),
            (Side::Keys, "bf16", _) | (Side::Keys, _, ..=64) => ("backward_keys", 128, 32),
            (Side::Keys, ..) => ("backward_keys", 128, 16),
        };
        let stride = if products == "bf16" { padded + 8 } else { padded + 4 };
        let mut bytes = size_of::<T>() * stride * (rows + 2 * columns);
        if products == "f32" {
            bytes += 256 * (columns + 4);
        }
        if side == Side::Keys {
            bytes += 8 * columns;
        }
        let function = ATTENTION.function(device, &format!("attention_{name}_{products}_{padded}"))?;
        // What a block may have without asking.
        if bytes > 48 * 1024 {
            function.set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes as i32).w()?;
        }
        let along = if side == Side::Keys { s.keys() } else { s.tokens };
        let config = LaunchConfig {
            grid_dim: (narrow(along.div_ceil(64))?, narrow(s.heads)?, narrow(s.batch)?),
            block_dim: (128, 1, 1),
            shared_mem_bytes: narrow(bytes)?,
        };
        Ok(Self { function, config })
    }
}

/// Sizes and scale as the kernels take them.
struct Numbers {
    batch: u32,
    tokens: u32,
    extra: u32,
    heads: u32,
    head: u32,
    scale: f32,
}

impl Numbers {
    fn of(s: &Sizes) -> Result<Self> {
        Ok(Self {
            batch: narrow(s.batch)?,
            tokens: narrow(s.tokens)?,
            extra: narrow(s.extra)?,
            heads: narrow(s.heads)?,
            head: narrow(s.head)?,
            scale: (1.0 / (s.head as f64).sqrt()) as f32,
        })
    }
}

/// Output and logarithms of sums, see [`crate::ops::attend`].
pub fn attend(qkv: &Tensor, extra: Option<&Tensor>, heads: usize) -> Result<(Value, Tensor)> {
    let s = Sizes::new(qkv.layout(), extra.map(Tensor::layout), heads)?;
    let injected = extra.map(Tensor::storage_and_layout);
    on_gpu!(qkv => qkv, layout);
    by_dtype!(qkv, T => {
        let device = qkv.device();
        let (qkv, extra) = (slice::<T>(qkv, layout)?, optional::<T>(&injected)?);
        let mut y = room::<T>(device, s.batch * s.tokens * s.width)?;
        let mut log_sums = room::<f32>(device, s.batch * s.heads * s.tokens)?;
        let Kernel { function, config } = Kernel::new::<T>(device, Side::Forward, &s)?;
        let Numbers { batch, tokens, extra: rows, heads, head, scale } = Numbers::of(&s)?;
        let stream = device.cuda_stream();
        let mut launch = stream.launch_builder(&function);
        launch.arg(&qkv);
        nullable!(launch, &extra);
        launch.arg(&mut y).arg(&mut log_sums);
        launch.arg(&batch).arg(&tokens).arg(&rows).arg(&heads).arg(&head).arg(&scale);
        // SAFETY: the kernel's arguments; `Sizes` has compared the shapes, the outputs are as large as it says.
        unsafe { launch.launch(config) }.w()?;
        let log_sums = value(log_sums, device, (s.batch, s.heads, s.tokens)).tensor();
        Ok((value(y, device, (s.batch, s.tokens, s.width)), log_sums))
    })
}

/// See [`crate::ops::attend_backward`].
pub fn attend_backward(
    qkv: &Tensor,
    extra: Option<&Tensor>,
    y: &Tensor,
    log_sums: &Tensor,
    dy: &Tensor,
    heads: usize,
) -> Result<(Tensor, Option<Tensor>)> {
    let injected = extra.map(Tensor::storage_and_layout);
    on_gpu!(qkv => qkv_storage, qkv_layout);
    on_gpu!(y => y_storage, y_layout);
    on_gpu!(dy => dy_storage, dy_layout);
    on_gpu!(log_sums => log_sums_storage, log_sums_layout);
    let s = Sizes::new(qkv_layout, injected.as_ref().map(|(_, layout)| *layout), heads)?;
    let shape = (s.batch, s.tokens, s.width);
    if y.dims3()? != shape || dy.dims3()? != shape || log_sums.dims3()? != (s.batch, s.heads, s.tokens) {
        bail!("attention's gradient of shape {:?} for an output of shape {shape:?}", dy.dims());
    }
    by_dtype!(qkv_storage, T => {
        let device = qkv_storage.device();
        let extra = optional::<T>(&injected)?;
        let qkv = slice::<T>(qkv_storage, qkv_layout)?;
        let (y, dy) = (slice::<T>(y_storage, y_layout)?, slice::<T>(dy_storage, dy_layout)?);
        let log_sums = slice::<f32>(log_sums_storage, log_sums_layout)?;
        let Numbers { batch, tokens, extra: rows, heads, head, scale } = Numbers::of(&s)?;
        let stream = device.cuda_stream();

        let of_heads = s.batch * s.tokens * s.heads;
        let mut delta = room::<f32>(device, of_heads)?;
        let function = ATTENTION.function(device, &format!("attention_delta_{}", T::SUFFIX))?;
        let config = LaunchConfig {
            grid_dim: (narrow(of_heads.div_ceil(16))?, 1, 1),
            block_dim: (128, 1, 1),
            shared_mem_bytes: 0,
        };
        let mut launch = stream.launch_builder(&function);
        launch.arg(&y).arg(&dy).arg(&mut delta).arg(&batch).arg(&tokens).arg(&heads).arg(&head);
        // SAFETY: the kernel's arguments; shapes were compared above.
        unsafe { launch.launch(config) }.w()?;

        let mut d_qkv = room::<T>(device, s.batch * s.tokens * 3 * s.width)?;
        let Kernel { function, config } = Kernel::new::<T>(device, Side::Queries, &s)?;
        let mut launch = stream.launch_builder(&function);
        launch.arg(&qkv);
        nullable!(launch, &extra);
        launch.arg(&dy).arg(&log_sums).arg(&delta).arg(&mut d_qkv);
        launch.arg(&batch).arg(&tokens).arg(&rows).arg(&heads).arg(&head).arg(&scale);
        // SAFETY: the kernel's arguments; it writes the queries' third of `d_qkv`, the next the rest.
        unsafe { launch.launch(config) }.w()?;

        let mut d_extra = match extra {
            Some(_) => Some(room::<T>(device, s.batch * s.extra * 2 * s.width)?),
            None => None,
        };
        let Kernel { function, config } = Kernel::new::<T>(device, Side::Keys, &s)?;
        let mut launch = stream.launch_builder(&function);
        launch.arg(&qkv);
        nullable!(launch, &extra);
        launch.arg(&dy).arg(&log_sums).arg(&delta).arg(&mut d_qkv);
        nullable!(launch, &mut d_extra);
        launch.arg(&batch).arg(&tokens).arg(&rows).arg(&heads).arg(&head).arg(&scale);
        // SAFETY: the kernel's arguments; `d_extra` has a row for each of `extra`.
        unsafe { launch.launch(config) }.w()?;

        let d_qkv = value(d_qkv, device, (s.batch, s.tokens, 3 * s.width)).tensor();
        let of_extra = (s.batch, s.extra, 2 * s.width);
        Ok((d_qkv, d_extra.map(|d_extra| value(d_extra, device, of_extra).tensor())))
    })
}
