//! Operations on an NVIDIA GPU: launches of the kernels in `core/kernels/cuda`, whose sources state the launch
//! contracts, and matrix products of cuBLASLt. All run on candle's stream. No call waits for the device.

mod attention;
mod embedding;
mod flat;
mod injected;
mod launch;
mod layer_norm;
mod linear;
mod same_shape;

use candle_core::{CudaDevice, Result};

pub use self::{
    attention::{attend, attend_backward},
    embedding::{assemble_tokens, patchify},
    flat::{assign_from_flat, flat},
    injected::{gather_rows, scatter_rows},
    layer_norm::{layer_norm, layer_norm_backward},
    linear::{linear, linear_backward},
    same_shape::{
        gelu, gelu_backward, l2_normalize, l2_normalize_backward, log_softmax, log_softmax_backward,
    },
};

/// Compute capability for which the kernels of this build are compiled, without the point: `80` is 8.0.
pub const COMPUTE_CAP: &str = env!("CDL_COMPUTE_CAP");

/// Checks that the GPU can run the kernels of this build.
///
/// # Errors
/// A GPU of an older generation, or another error of the driver.
pub fn probe(device: &CudaDevice) -> Result<()> {
    launch::ELEMENTWISE.function(device, "gelu_forward_f32").map(|_| ())
}
