//! Files of a data set: a data set repository on the Hugging Face Hub, or a local folder.
//!
//! The current commit of the revision is requested from the hub, and all files are of that commit. If the hub does not
//! respond, or `HF_HUB_OFFLINE` forbids requests, the files in the cache are used. The cache does not record which
//! other files the repository has, so the caller must check by their names that no file is missing.

use std::{
    fs,
    path::{Path, PathBuf},
};

use walkdir::{DirEntry, WalkDir};

use crate::{
    error::HubError,
    hub::{FileSource, checksum},
    traits::Provenance,
};

/// Local file of a data set.
#[derive(Debug, Clone)]
pub struct DataFile {
    /// Path in the repository or folder, with `/` between folders.
    pub name: String,
    /// Local path.
    pub path: PathBuf,
    /// Source and checksum.
    pub provenance: Provenance,
}

/// Fetches files of a data set. `choose` selects them from the sorted names of all files.
///
/// Every file is read once to compute its checksum. `seen` is called for each file.
pub fn fetch(
    source: &FileSource,
    choose: impl Fn(&[String]) -> crate::error::Result<Vec<String>>,
    seen: &dyn Fn(),
) -> crate::error::Result<Vec<DataFile>> {
    match source {
        FileSource::Path(path) => {
            let files = choose(&names_below(path)?)?.into_iter().map(|name| {
                let path = path.join(&name);
                let provenance = Provenance::local(&source.to_string(), &name, checksum(&path)?);
                seen();
                Ok(DataFile { name, path, provenance })
            });
            files.collect()
        }
        #[cfg(feature = "hub")]
        FileSource::Hub { repo, revision } => {
            super::client::dataset(source.to_string(), repo, revision.as_deref(), choose, seen)
        }
        #[cfg(not(feature = "hub"))]
        FileSource::Hub { .. } => Err(HubError::NoClient { wanted: source.to_string() }.into()),
    }
}

/// Lists the names of all files in a folder and its subfolders, sorted, without hidden files.
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
        // Files of the cache are symbolic links. Linked folders are skipped: they may form a cycle.
        if let Some(name) = path.strip_prefix(root).ok().filter(|_| path.is_file()) {
            let parts: Vec<_> = name.iter().map(|part| part.to_string_lossy()).collect();
            names.push(parts.join("/"));
        }
    }
    names.sort();
    Ok(names)
}
