//! Weights and data sets from repositories on the Hugging Face Hub or from local paths.
//!
//! A repository is fetched into the cache that other Hugging Face libraries use, so files that they downloaded are
//! reused. The usual environment variables apply:
//!
//! | variable | effect |
//! | --- | --- |
//! | `HF_HOME`, `HF_HUB_CACHE` | location of the cache and the token file |
//! | `HF_TOKEN`, `HF_TOKEN_PATH` | access token for private and gated repositories |
//! | `HF_ENDPOINT` | mirror that replaces `https://huggingface.co` |
//! | `HF_HUB_OFFLINE` | `1`, `true`, `yes` or `on`: use only the cache |
//! | `HF_HUB_DOWNLOAD_TIMEOUT` | longest time without a byte, in seconds (10) |
//!
//! The weights are `model.safetensors`, or `pytorch_model.bin` if that file does not exist. All files of a repository
//! are of one commit. The run records this commit, so that its record shows whether a branch moved between two runs.

pub mod checksum_list;
#[cfg(feature = "hub")]
mod client;
pub mod dataset;
mod file_source;
mod weight_files;

pub use file_source::FileSource;
pub use weight_files::{WeightFiles, fetch};

use std::{io::Read, path::Path};

use sha2::{Digest, Sha256};

use crate::{error::HubError, system::hex};

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Returns the length of a file and its SHA-256.
pub(crate) fn checksum(path: &Path) -> Result<(u64, String), HubError> {
    let unreadable = |reason| HubError::Unreadable { path: path.to_owned(), reason };
    let mut file = crate::system::files::open(path).map_err(unreadable)?;
    let (mut hasher, mut bytes, mut buffer) = (Sha256::new(), 0, Vec::new());
    while file.by_ref().take(1 << 20).read_to_end(&mut buffer).map_err(unreadable)? > 0 {
        hasher.update(&buffer);
        bytes += buffer.len() as u64;
        buffer.clear();
    }
    Ok((bytes, hex(&hasher.finalize())))
}
