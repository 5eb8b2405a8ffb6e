//! The files of a data set: a data set repository on the Hugging Face Hub, or a folder on this
//! machine.
//!
//! As for weights, the hub is asked where the revision stands now, and all files are of one commit.
//! If it gives no answer, or `HF_HUB_OFFLINE` forbids the question, the files in the cache are used.
//! The cache does not say which files the repository has beyond those that were fetched; the caller,
//! who knows how they are named, must see whether some are missing.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    error::HubError,
    hub::{DEFAULT_REVISION, WeightSource, checksum, client, file_name},
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
///
/// # Errors
/// What `choose` says, and [`HubError`]s.
pub fn fetch(
    source: &WeightSource,
    choose: impl Fn(&[String]) -> crate::error::Result<Vec<String>>,
    seen: &dyn Fn(),
) -> crate::error::Result<Vec<DataFile>> {
    match source {
        WeightSource::Path(path) => {
            let names = choose(&names_below(path)?)?;
            let told = |name| of_folder(source, path, name).inspect(|_| seen());
            names.into_iter().map(|name| Ok(told(name)?)).collect()
        }
        WeightSource::Hub { repo, revision } => {
            let revision = revision.as_deref().unwrap_or(DEFAULT_REVISION);
            client::dataset(source.to_string(), repo, revision, choose, seen)
        }
    }
}

fn of_folder(source: &WeightSource, folder: &Path, name: String) -> Result<DataFile, HubError> {
    let path = folder.join(&name);
    let provenance = Provenance::local(&source.to_string(), &name, checksum(&path)?);
    Ok(DataFile { name, path, provenance })
}

/// The names of all files below a folder, sorted; hidden ones are left out.
pub(crate) fn names_below(root: &Path) -> Result<Vec<String>, HubError> {
    if !root.exists() {
        return Err(HubError::NoPath { path: root.to_owned() });
    }
    let mut names = Vec::new();
    let mut folders = vec![(root.to_owned(), String::new())];
    while let Some((folder, prefix)) = folders.pop() {
        let unreadable = |reason| HubError::Unreadable { path: folder.clone(), reason };
        for entry in fs::read_dir(&folder).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            let own = file_name(&path);
            if own.starts_with('.') {
                continue;
            }
            let name = format!("{prefix}{own}");
            // Files of the cache are links. Linked folders are passed over: they may lead in a circle.
            if path.is_file() {
                names.push(name);
            } else if path.is_dir() && !path.is_symlink() {
                folders.push((path, format!("{name}/")));
            }
        }
    }
    names.sort();
    Ok(names)
}
