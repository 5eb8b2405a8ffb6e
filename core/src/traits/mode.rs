//! Mode of a run: published or corrected.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Selects the defaults of settings in which the published code deviates from the papers (quirks).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Defaults of the published code: unnormalised pixels, the same learning rate in the first two epochs, fixed class
    /// order, the student's query for the teacher, and the quirks of single methods.
    #[default]
    Published,
    /// Defaults of the papers: the checkpoint's normalisation, a plain cosine schedule, classes shuffled by the seed,
    /// each network's own query. Settings in a configuration override the defaults of both modes.
    Corrected,
}
