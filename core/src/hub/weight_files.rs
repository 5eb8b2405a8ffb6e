//! Weight files of a network: from a repository on the hub, or from a file or folder.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    error::HubError,
    hub::{WeightSource, checksum, file_name},
    traits::Provenance,
};

/// Names of weight files, the preferred one first.
pub(super) const WEIGHTS: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];
/// Name of a network's configuration beside its weights.
pub(super) const CONFIG: &str = "config.json";
/// Name of the description of a network's input, beside its weights.
pub(super) const PREPROCESSOR: &str = "preprocessor_config.json";

/// Files on this machine, ready to read.
#[derive(Debug, Clone)]
pub struct WeightFiles {
    /// The safetensors file or PyTorch state dict.
    pub weights: PathBuf,
    /// The `config.json` beside it in its repository or folder. `None` where there is none, and
    /// always for a source that names a single file: its neighbours may describe something else.
    pub config: Option<PathBuf>,
    /// The `preprocessor_config.json` there, likewise.
    pub preprocessor: Option<PathBuf>,
    /// What the weights are.
    pub provenance: Provenance,
}

/// Brings the files of `source` onto this machine and says what they are.
///
/// The weights are read once in full, for their checksum. Blocks while it downloads; may be called
/// from a thread of any async runtime.
///
/// For a repository, the hub is asked where the revision stands now. If it gives no answer, a copy of that revision
/// in the cache is used instead, with a warning. It is not asked at all when `HF_HUB_OFFLINE` forbids it, or when the
/// revision is a full commit hash, whose files never change, and the cache holds them.
pub fn fetch(source: &WeightSource) -> Result<WeightFiles, HubError> {
    match source {
        #[cfg(feature = "hub")]
        WeightSource::Hub { repo, revision } => {
            super::client::weights(source.to_string(), repo, revision.as_deref())
        }
        #[cfg(not(feature = "hub"))]
        WeightSource::Hub { .. } => Err(HubError::NoClient { wanted: source.to_string() }),
        WeightSource::Path(path) => from_path(source.to_string(), path),
    }
}

fn from_path(wanted: String, path: &Path) -> Result<WeightFiles, HubError> {
    let metadata = fs::metadata(path).map_err(|reason| match reason.kind() {
        io::ErrorKind::NotFound => HubError::NoPath { path: path.to_owned() },
        _ => HubError::Unreadable { path: path.to_owned(), reason },
    })?;
    let (weights, config, preprocessor) = if metadata.is_file() {
        (path.to_owned(), None, None)
    } else if metadata.is_dir() {
        let file = |name: &str| Some(path.join(name)).filter(|file| file.is_file());
        let Some(weights) = WEIGHTS.into_iter().find_map(file) else {
            return Err(HubError::NoWeightsInFolder { path: path.to_owned() });
        };
        (weights, file(CONFIG), file(PREPROCESSOR))
    } else {
        return Err(HubError::NotAFile { path: path.to_owned() });
    };

    let provenance = Provenance::local(&wanted, &file_name(&weights), checksum(&weights)?);
    Ok(WeightFiles { weights, config, preprocessor, provenance })
}
