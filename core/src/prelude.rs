//! Imports for the author of a method: `use cdl_core::prelude::*;`.
//!
//! The four traits with their data, errors, seeded random numbers, candle's tensors, trainable layers and losses, image
//! sets, and the derives and range checks for settings. Backbones also need [`vit`](crate::vit).

pub use candle_core::{D, DType, Device, Tensor};
pub use image::RgbImage;
pub use schemars::JsonSchema;
pub use serde::{Deserialize, Serialize};

pub use crate::{
    data::{ImageSet, ImageStream, TaskSettings},
    error::{Error, Result},
    nn::{LayerNorm, Linear, TokenAlignment, cross_entropy, kl_divergence},
    register,
    registry::ranges,
    rng::Rng,
    traits::*,
};
