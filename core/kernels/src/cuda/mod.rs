//! The operations on an NVIDIA GPU: launches of the kernels in `core/kernels/cuda`, whose sources state how they are launched,
//! and matrix products of cuBLASLt, all on candle's stream. No call waits for the device.

mod attention;
mod embedding;
mod flat;
mod gelu;
mod injected;
mod launch;
mod layer_norm;
mod linear;
mod rows;

use candle_core::{CudaDevice, Result};

pub use self::{
    attention::{attend, attend_backward},
    embedding::{assemble_tokens, patchify},
    flat::{flat, set_from_flat},
    gelu::{gelu, gelu_backward},
    injected::{gather_rows, scatter_rows},
    layer_norm::{layer_norm, layer_norm_backward},
    linear::{linear, linear_backward},
    rows::RowKernel,
};

/// Checks that the GPU takes the kernels of this build.
///
/// # Errors
/// A GPU of an older generation, or another error of the driver.
pub fn probe(device: &CudaDevice) -> Result<()> {
    launch::ELEMENTWISE.function(device, "gelu_forward_f32").map(|_| ())
}
