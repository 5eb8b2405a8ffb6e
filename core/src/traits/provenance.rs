//! Origin of a file: its source and its SHA-256.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::system::hex;

/// Origin of a file, for run records.
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
    /// Origin of a file that comes from no repository.
    pub(crate) fn local(source: &str, file: &str, (bytes, sha256): (u64, String)) -> Self {
        Self { source: source.into(), repository: None, revision: None, file: file.into(), bytes, sha256 }
    }

    /// Origin of bytes that are in memory and are called `source`.
    pub fn of_bytes(source: &str, bytes: &[u8]) -> Self {
        Self::local(source, source, (bytes.len() as u64, hex(&Sha256::digest(bytes))))
    }
}
