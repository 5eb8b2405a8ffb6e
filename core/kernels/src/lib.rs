//! Differentiable operations of frozen networks, on the CPU and on NVIDIA GPUs.
//!
//! candle's fused softmax and layer norm have no backward pass, and the backward pass of its matrix product also
//! computes gradients of frozen weights. The operations of this crate have a backward pass, treat frozen tensors as
//! constants and compute gradients of the other inputs only. Every value is computed by one thread in a fixed order, so
//! results do not depend on the number of threads.
//!
//! | for | see |
//! |---|---|
//! | single layers in candle's graph | [`linear`], [`layer_norm`], [`gelu`], [`attention`] |
//! | losses and prompt selection | [`log_softmax`], [`softmax`], [`l2_normalize`] |
//! | whole blocks of a vision transformer with injected prompts | [`blocks::BlockRunner`] |
//! | whole blocks in float32 on the CPU, fastest | [`fused::FusedBlocks`] |
//! | whole blocks on other devices and in other types | [`TapedBlocks`] |
//! | the same operations composed of candle's, for tests | [`composed`] |
//!
//! With the feature `cuda`, operations on a GPU launch the kernels in `core/kernels/cuda`.
//!
//! # Example
//!
//! A prompt to which tokens attend gets a gradient. A trainable weight of a frozen layer is refused: it would get none.
//!
//! ```
//! use candle_core::{DType, Device, Result, Tensor, Var};
//!
//! fn main() -> Result<()> {
//!     let (batch, tokens, width, heads) = (2, 5, 8, 2);
//!     let x = Tensor::ones((batch, tokens, width), DType::F32, &Device::Cpu)?;
//!     let weight = Tensor::ones((3 * width, width), DType::F32, &Device::Cpu)?;
//!     let prompt = Var::ones((batch, 1, 2 * width), DType::F32, &Device::Cpu)?;
//!
//!     let qkv = cdl_kernels::linear(&x, &weight, None)?; // (B, N, 3D)
//!     let y = cdl_kernels::attention(&qkv, Some(&prompt), heads)?; // (B, N, D)
//!     let gradients = y.sum_all()?.backward()?;
//!
//!     assert_eq!(y.dims(), [batch, tokens, width]);
//!     assert!(gradients.get(&prompt).is_some());
//!     let trainable = Var::from_tensor(&weight)?;
//!     assert!(cdl_kernels::linear(&x, &trainable, None).is_err());
//!     Ok(())
//! }
//! ```

pub mod blocks;
#[cfg(feature = "cuda")]
mod cuda;
pub mod fused;
pub mod layers;
mod ops;
mod slices;
mod storage;
mod tape;
mod taped;

#[cfg(feature = "cuda")]
pub use cuda::{COMPUTE_CAP, probe};
pub use ops::{
    Source, Sources, assign_from_flat, attention, composed, flat, gather_rows, gelu, l2_normalize,
    layer_norm, linear, log_softmax, softmax,
};
pub use taped::TapedBlocks;
