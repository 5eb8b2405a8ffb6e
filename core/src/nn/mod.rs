//! Building blocks of methods: trainable layers, losses, and the resampling of patch tokens from one network's grid to
//! another's.

mod loss;
mod token_alignment;
mod trainable_layers;

pub use loss::{cross_entropy, kl_divergence};
pub use token_alignment::TokenAlignment;
pub use trainable_layers::{LayerNorm, Linear};
