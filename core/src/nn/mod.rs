//! Building blocks of methods: trainable layers, losses, and resampling of one network's patch
//! tokens to another's grid.

mod loss;
mod token_alignment;
mod trainable_layers;

pub use loss::{cross_entropy, kl_divergence};
pub use token_alignment::TokenAlignment;
pub use trainable_layers::{LayerNorm, Linear};
