//! Operations on tensors: in Rust on the CPU, by the kernels in [`cuda`](crate::cuda) on an NVIDIA GPU, and otherwise
//! by candle's operations.

mod attention;
pub mod composed;
mod embedding;
mod flat;
mod gelu;
mod injected;
mod layer_norm;
mod linear;
mod rows;

#[cfg(feature = "cuda")]
pub use attention::Sizes;
pub use attention::{Attended, attend, attend_backward, attention};
pub use embedding::{assemble_tokens, patchify};
pub use flat::{assign_from_flat, flat};
pub use gelu::{gelu, gelu_backward};
pub use injected::{Source, Sources, gather_rows};
pub use layer_norm::{layer_norm, layer_norm_backward};
pub use linear::{linear, linear_backward, linear_value};
pub use rows::{l2_normalize, log_softmax, softmax};
