//! Everything that a method is written with: `use cdl_core::prelude::*;`.
//!
//! The four traits with their data, errors, seeded random numbers, candle's tensors, trainable layers and losses, and
//! checks of settings. Streams over image files also need [`data`](crate::data), vision transformers
//! [`vit`](crate::vit).

pub use candle_core::{D, DType, Device, Tensor};

pub use crate::{
    error::{Error, Result},
    nn::{LayerNorm, Linear, TokenAlignment, cross_entropy, kl_divergence},
    register,
    registry::ranges,
    rng::Rng,
    traits::*,
};
