//! Origin of a file: its source and its SHA-256.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::system::hex;

/// Origin of a file, for run records.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// Source as written in the configuration.
    pub source: String,
    /// `owner/name`, for weights from the hub.
    pub repository: Option<String>,
    /// Commit of the revision, for weights from the hub.
    pub revision: Option<String>,
    /// Name of the file.
    pub file: String,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// SHA-256 of the file in lower-case hexadecimal digits.
    pub sha256: String,
}

impl Provenance {
    /// Creates the record of a local file.
    pub(crate) fn local(source: &str, file: &str, (bytes, sha256): (u64, String)) -> Self {
        Self { source: source.into(), repository: None, revision: None, file: file.into(), bytes, sha256 }
    }

    /// Creates the record of bytes in memory, with the name `source`.
    pub fn of_bytes(source: &str, bytes: &[u8]) -> Self {
        Self::local(source, source, (bytes.len() as u64, hex(&Sha256::digest(bytes))))
    }
}
