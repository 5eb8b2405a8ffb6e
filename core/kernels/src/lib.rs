//! Differentiable operations for frozen networks.
//!
//! candle's fused softmax and layer norm have no backward pass, and the backward pass of its matmul computes a gradient
//! for frozen weights too. These operations do neither: each takes the frozen tensors as constants and sends gradients
//! to its inputs alone. On the CPU they are fused, vectorised and multi-threaded, for NVIDIA's GPUs they have kernels of
//! their own (`core/kernels`); for other types and devices they are composed of candle's own differentiable operations
//! ([`portable`]), which also serve as the tests' oracle.
//!
//! Every value is computed by one thread in a fixed order, so results do not depend on the number of threads.

mod attention;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda")]
pub use cuda::probe;
mod embedding;
mod flat;
pub mod fused;
mod gelu;
mod injected;
mod kernel;
mod layer_norm;
mod linear;
pub mod portable;
mod rows;

pub use attention::attention;
pub use attention::{Attended, attend, attend_backward};
pub use embedding::{cut_patches, put_together};
pub use flat::{flat, set_from_flat};
pub use gelu::gelu;
pub use gelu::{gelu_backward, gelu_value};
pub use injected::{Source, Sources, side_by_side};
pub use layer_norm::layer_norm;
pub use layer_norm::{layer_norm_backward, layer_norm_value};
pub use linear::linear;
pub use linear::{linear_backward, linear_value};
pub use rows::{log_softmax, softmax, unit};

use candle_core::{CpuStorage, DType, Layout, Tensor};

use kernel::Real;

/// Whether there are kernels for this tensor.
fn fused(x: &Tensor) -> bool {
    match x.dtype() {
        DType::F64 => x.device().is_cpu(),
        DType::F32 => x.device().is_cpu() || on_gpu(x),
        DType::BF16 => on_gpu(x),
        _ => false,
    }
}

/// Whether it lies where the CUDA kernels of this build can take it.
fn on_gpu(x: &Tensor) -> bool {
    cfg!(feature = "cuda") && x.device().is_cuda()
}

/// Whether it is one of a loss, of prompts or of variables there, which are float32 in every precision.
#[cfg(feature = "cuda")]
fn float32_on_gpu(x: &Tensor) -> bool {
    on_gpu(x) && x.dtype() == DType::F32
}

/// The elements of a contiguous tensor.
fn slice<'a, T: Real>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<T>()?[start..end]),
        None => candle_core::bail!("operation on a tensor that is not contiguous: {layout:?}"),
    }
}

/// Runs `$body` with `$t` as the element type of `$storage`.
macro_rules! by_dtype {
    ($storage:expr, $t:ident => $body:expr) => {
        match $storage {
            candle_core::CpuStorage::F32(_) => {
                type $t = f32;
                $body
            }
            candle_core::CpuStorage::F64(_) => {
                type $t = f64;
                $body
            }
            other => candle_core::bail!(
                "operation on {:?}, expected f32 or f64",
                candle_core::backend::BackendStorage::dtype(other)
            ),
        }
    };
}
use by_dtype;
