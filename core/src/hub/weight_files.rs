//! Weight files of a network, from a repository on the hub, a file or a folder.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    error::HubError,
    hub::{FileSource, checksum, file_name},
    traits::Provenance,
};

/// Names of weight files, preferred name first.
pub(super) const WEIGHTS: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];
/// Name of the file with a network's configuration, in the folder of its weights.
pub(super) const CONFIG: &str = "config.json";
/// Name of the file that describes a network's input, in the folder of its weights.
pub(super) const PREPROCESSOR: &str = "preprocessor_config.json";

/// Local weight files.
#[derive(Debug, Clone)]
pub struct WeightFiles {
    /// Safetensors file or PyTorch state dict.
    pub weights: PathBuf,
    /// `config.json` in the folder of the weights, if it exists. Always `None` for a source that names a single file,
    /// because other files in its folder may describe another network.
    pub config: Option<PathBuf>,
    /// `preprocessor_config.json` in the folder of the weights, under the same conditions as `config`.
    pub preprocessor: Option<PathBuf>,
    /// Source and checksum of the weights.
    pub provenance: Provenance,
}

/// Fetches the files of `source`.
///
/// The weights are read once to compute their checksum. Blocks during downloads; may be called from a thread of any
/// async runtime.
///
/// For a repository, the current commit of the revision is requested from the hub. If the hub does not respond, a
/// cached copy of that revision is used, with a warning. There is no request if `HF_HUB_OFFLINE` forbids it, or if the
/// revision is a full commit hash, whose files never change, and the cache contains them.
pub fn fetch(source: &FileSource) -> Result<WeightFiles, HubError> {
    match source {
        #[cfg(feature = "hub")]
        FileSource::Hub { repo, revision } => {
            super::client::weights(source.to_string(), repo, revision.as_deref())
        }
        #[cfg(not(feature = "hub"))]
        FileSource::Hub { .. } => Err(HubError::NoClient { wanted: source.to_string() }),
        FileSource::Path(path) => from_path(source.to_string(), path),
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
