//! The files of a data set: a data set repository on the Hugging Face Hub, or a folder on this
//! machine.
//!
//! As for weights, the hub is asked where the revision stands now, and all files are of one commit.
//! If it gives no answer, or `HF_HUB_OFFLINE` forbids the question, the files in the cache are used.
//! The cache does not say which files the repository has beyond those that were fetched; the caller,
//! who knows how they are named, must see whether some are missing.

use std::fs;
use std::path::{Component, Path, PathBuf};

use hf_hub::repository::RepoTreeEntry;
use hf_hub::{HFError, RepoTypeDataset};

use crate::{
    error::HubError,
    hub::{DEFAULT_REVISION, Repository, WeightSource, checksum, gave_no_answer, offline, reason},
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
            let repository = Repository::<RepoTypeDataset>::open(source.to_string(), repo, revision)?;
            let snapshot = repository.files(choose, seen)?;
            let checked = |Cached { commit, name, path }| -> Result<DataFile, HubError> {
                let provenance = repository.checked(&path, &name, commit)?;
                Ok(DataFile { name, path, provenance })
            };
            snapshot.into_iter().map(|file| Ok(checked(file)?)).collect()
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
            let own = super::file_name(&path);
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

/// A file in the cache.
struct Cached {
    commit: String,
    name: String,
    path: PathBuf,
}

impl Repository<RepoTypeDataset> {
    /// The chosen files, from wherever they may and can be had.
    fn files(
        &self,
        choose: impl Fn(&[String]) -> crate::error::Result<Vec<String>>,
        seen: &dyn Fn(),
    ) -> crate::error::Result<Vec<Cached>> {
        if offline() {
            let missing = || HubError::Offline { wanted: self.wanted.clone(), cache: self.cache.clone() };
            return self.files_cached(&choose)?.ok_or_else(|| missing().into());
        }
        match self.stands().and_then(|()| self.files_listed()) {
            Ok(names) => Ok(self.files_downloaded(choose(&names)?, seen)?),
            Err(error) if gave_no_answer(&error) => match self.files_cached(&choose)? {
                Some(files) => {
                    tracing::warn!(
                        "{} gives no answer ({}): using the cached copy of `{}`",
                        self.endpoint,
                        reason(&error),
                        self.wanted,
                    );
                    Ok(files)
                }
                None => Err(self.explain(error).into()),
            },
            Err(error) => Err(self.explain(error).into()),
        }
    }

    /// The names of all files that the hub has.
    fn files_listed(&self) -> Result<Vec<String>, HFError> {
        let entries = self.handle.list_tree().revision(&self.revision).recursive(true).send()?;
        let mut names: Vec<String> = entries
            .into_iter()
            .filter_map(|entry| match entry {
                RepoTreeEntry::File { path, .. } => Some(path),
                RepoTreeEntry::Directory { .. } => None,
            })
            // A server that is no honest hub must not write outside the cache.
            .filter(|name| Path::new(name).components().all(|part| matches!(part, Component::Normal(_))))
            .collect();
        names.sort();
        Ok(names)
    }

    fn files_downloaded(&self, names: Vec<String>, seen: &dyn Fn()) -> Result<Vec<Cached>, HubError> {
        let mut files: Vec<Cached> = Vec::new();
        for name in names {
            tracing::info!("fetching `{name}` of `{}` from {}", self.wanted, self.endpoint);
            // The first by the revision, which the cache then remembers; the others by the commit of
            // the first, so that all stay together when a branch moves in between.
            let revision = files.first().map_or(&self.revision, |first| &first.commit);
            let path = match self.handle.download_file().filename(&name).revision(revision).send() {
                Ok(path) => path,
                Err(HFError::EntryNotFound { .. }) => {
                    let revision = self.revision.clone();
                    return Err(HubError::NoData { wanted: self.wanted.clone(), file: name, revision });
                }
                Err(error) => return Err(self.explain(error)),
            };
            let depth = Path::new(&name).components().count();
            let commit = path.ancestors().nth(depth).map(super::file_name).unwrap_or_default();
            files.push(Cached { commit, name, path });
            seen();
        }
        Ok(files)
    }

    /// The chosen files as the cache has them, if it has any of this revision.
    fn files_cached(
        &self,
        choose: impl Fn(&[String]) -> crate::error::Result<Vec<String>>,
    ) -> crate::error::Result<Option<Vec<Cached>>> {
        let folder = self.cache_folder();
        let commit = fs::read_to_string(folder.join("refs").join(&self.revision));
        let commit = commit.map_or_else(|_| self.revision.clone(), |commit| commit.trim().to_owned());
        let snapshot = folder.join("snapshots").join(&commit);
        if commit.is_empty() || !snapshot.is_dir() {
            return Ok(None);
        }
        let names = choose(&names_below(&snapshot)?)?;
        let files = names.into_iter().map(|name| {
            let path = snapshot.join(&name);
            Cached { commit: commit.clone(), name, path }
        });
        Ok(Some(files.collect()))
    }
}
