//! Origin of a file: where it came from, and its SHA-256.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::system::hex;

/// What a run record says about the weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// The source as written in the config.
    pub source: String,
    /// `owner/name`, for weights from the hub.
    pub repository: Option<String>,
    /// The commit that the revision stood for, for weights from the hub.
    pub revision: Option<String>,
    /// The name of the weight file.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256, in lower-case hexadecimal digits.
    pub sha256: String,
}

impl Provenance {
    /// For weights that are in memory: `source` names them.
    pub fn of_bytes(source: &str, weights: &[u8]) -> Self {
        Self {
            source: source.into(),
            repository: None,
            revision: None,
            file: source.into(),
            bytes: weights.len() as u64,
            sha256: hex(&Sha256::digest(weights)),
        }
    }
}
