//! Building blocks of methods: trainable layers, losses, and tokens of two networks at the same places.

mod loss;
mod token_alignment;
mod trainable_layers;

pub use loss::{cross_entropy, kl_divergence};
pub use token_alignment::TokenAlignment;
pub use trainable_layers::{LayerNorm, Linear};
