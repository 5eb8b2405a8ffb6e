//! The files of a data set: a data set repository on the Hugging Face Hub, or a folder on this machine.
//!
//! As for weights, the hub is asked where the revision stands now, and all files are of one commit.
//! If it gives no answer, or `HF_HUB_OFFLINE` forbids the question, the files in the cache are used.
//! The cache does not say which files the repository has beyond those that were fetched; the caller,
//! who knows how they are named, must see whether some are missing.

use std::{
    fs,
    path::{Path, PathBuf},
};

use walkdir::{DirEntry, WalkDir};

use crate::{
    error::HubError,
    hub::{WeightSource, checksum},
    traits::Provenance,
};

/// A file of a data set, ready to read.
#[derive(Debug, Clone)]
pub struct DataFile {
    /// Its path in the repository or folder, with `/` between folders.
    pub name: String,
    /// Where it lies.
    pub path: PathBuf,
    /// What it is.
    pub provenance: Provenance,
}

/// Brings those files of a data set onto this machine that `choose` takes from the names of all its
/// files, which are sorted.
///
/// Each is read once in full, for its checksum; `seen` is told of each that has come from the hub or
/// was found in the folder.
pub fn fetch(
    source: &WeightSource,
    choose: impl Fn(&[String]) -> crate::error::Result<Vec<String>>,
    seen: &dyn Fn(),
) -> crate::error::Result<Vec<DataFile>> {
    match source {
        WeightSource::Path(path) => {
            let files = choose(&names_below(path)?)?.into_iter().map(|name| {
                let path = path.join(&name);
                let provenance = Provenance::local(&source.to_string(), &name, checksum(&path)?);
                seen();
                Ok(DataFile { name, path, provenance })
            });
            files.collect()
        }
        #[cfg(feature = "hub")]
        WeightSource::Hub { repo, revision } => {
            super::client::dataset(source.to_string(), repo, revision.as_deref(), choose, seen)
        }
        #[cfg(not(feature = "hub"))]
        WeightSource::Hub { .. } => Err(HubError::NoClient { wanted: source.to_string() }.into()),
    }
}

/// The names of all files below a folder, sorted; hidden ones are left out.
pub(crate) fn names_below(root: &Path) -> Result<Vec<String>, HubError> {
    if !root.exists() {
        return Err(HubError::NoPath { path: root.to_owned() });
    }
    let hidden = |entry: &DirEntry| entry.depth() > 0 && entry.file_name().to_string_lossy().starts_with('.');
    fs::read_dir(root).map_err(|reason| HubError::Unreadable { path: root.to_owned(), reason })?;
    let mut names = Vec::new();
    for entry in WalkDir::new(root).into_iter().filter_entry(|entry| !hidden(entry)) {
        let unreadable = |e: walkdir::Error| HubError::Unreadable {
            path: e.path().unwrap_or(root).to_owned(),
            reason: e.into(),
        };
        let path = entry.map_err(unreadable)?.into_path();
        // Files of the cache are links. Linked folders are passed over: they may lead in a circle.
        if let Some(name) = path.strip_prefix(root).ok().filter(|_| path.is_file()) {
            let parts: Vec<_> = name.iter().map(|part| part.to_string_lossy()).collect();
            names.push(parts.join("/"));
        }
    }
    names.sort();
    Ok(names)
}
