//! Number formats of frozen networks.

use candle_core::DType;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Number format of the frozen networks; prompts, heads, losses and optimisers are always float32.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 24 bits of precision, everywhere.
    #[default]
    Float32,
    /// float32, but a GPU's matrix products round their inputs to 11 bits (of heads and prompts too).
    Tf32,
    /// Weights and activations of the frozen networks have 8 bits, sums are float32. On a GPU: half the memory.
    Bf16,
}

impl Precision {
    /// Name in a configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        }
    }

    /// Tensor type of frozen weights and activations.
    pub fn dtype(self) -> DType {
        match self {
            Self::Float32 | Self::Tf32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }
}
