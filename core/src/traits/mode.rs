//! Published or corrected behaviour.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which set of defaults holds where the published code has quirks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// As the published code computes: unnormalised pixels, the first two epochs at one rate, fixed class order, the
    /// student's query for the teacher, and what single methods call their quirks.
    #[default]
    Published,
    /// As the papers describe: the checkpoint's normalisation, a plain cosine, classes shuffled by seed, every network
    /// with its own query. Settings named in a configuration win over either mode.
    Corrected,
}
