//! Operations on an NVIDIA GPU: launches of the kernels in `core/kernels/cuda`, by the launch contracts in their
//! sources, and matrix products of cuBLASLt, all on candle's stream. No call waits for the device.

mod alike;
mod attention;
mod embedding;
mod flat;
mod injected;
mod launch;
mod layer_norm;
mod linear;

use candle_core::{CudaDevice, Result};

pub use self::{
    alike::{gelu, gelu_backward, l2_normalize, l2_normalize_backward, log_softmax, log_softmax_backward},
    attention::{attend, attend_backward},
    embedding::{assemble_tokens, patchify},
    flat::{flat, set_from_flat},
    injected::{gather_rows, scatter_rows},
    layer_norm::{layer_norm, layer_norm_backward},
    linear::{linear, linear_backward},
};

/// Compute capability for which the kernels of this build are compiled, without its point: `80` is 8.0.
pub const COMPUTE_CAP: &str = env!("CDL_COMPUTE_CAP");

/// Checks that the GPU can run the kernels of this build.
///
/// # Errors
/// A GPU of an older generation, or another error of the driver.
pub fn probe(device: &CudaDevice) -> Result<()> {
    launch::ELEMENTWISE.function(device, "gelu_forward_f32").map(|_| ())
}
