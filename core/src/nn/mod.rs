//! Building blocks of methods: trainable layers, losses, and tokens of two networks at the same places.

mod layers;
mod loss;
mod token_alignment;

pub use layers::{LayerNorm, Linear};
pub use loss::{cross_entropy, kl_divergence};
pub use token_alignment::TokenAlignment;
