//! Precision of frozen networks.

use candle_core::DType;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Precision of the frozen networks. Prompts, heads, losses and optimisers are always float32.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// float32 (24 bits of significand).
    #[default]
    Float32,
    /// float32, with the inputs of all matrix products on a GPU rounded to 11 bits of significand, including those of
    /// heads and prompts.
    Tf32,
    /// bfloat16 (8 bits of significand) for weights and activations of the frozen networks, sums in float32. Halves the
    /// memory on a GPU.
    Bf16,
}

impl Precision {
    /// Returns the name in a configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        }
    }

    /// Returns the dtype of frozen weights and activations.
    pub fn dtype(self) -> DType {
        match self {
            Self::Float32 | Self::Tf32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }
}
