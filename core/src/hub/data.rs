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
use walkdir::{DirEntry, WalkDir};

use super::{
    DEFAULT_REVISION, HubError, Provenance, Repository, WeightSource, checksum, gave_no_answer, offline,
    reason,
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
    choose: impl Fn(&[String]) -> crate::Result<Vec<String>>,
    seen: &dyn Fn(),
) -> crate::Result<Vec<DataFile>> {
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
            snapshot.into_iter().map(|file| Ok(repository.checked(file)?)).collect()
        }
    }
}

fn of_folder(source: &WeightSource, folder: &Path, name: String) -> Result<DataFile, HubError> {
    let path = folder.join(&name);
    let (bytes, sha256) = checksum(&path)?;
    let source = source.to_string();
    let provenance =
        Provenance { source, repository: None, revision: None, file: name.clone(), bytes, sha256 };
    Ok(DataFile { name, path, provenance })
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
        choose: impl Fn(&[String]) -> crate::Result<Vec<String>>,
        seen: &dyn Fn(),
    ) -> crate::Result<Vec<Cached>> {
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
        choose: impl Fn(&[String]) -> crate::Result<Vec<String>>,
    ) -> crate::Result<Option<Vec<Cached>>> {
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

    /// The file with its checksum, which must be the one that the hub lists.
    fn checked(&self, Cached { commit, name, path }: Cached) -> Result<DataFile, HubError> {
        let (bytes, sha256) = checksum(&path)?;
        self.verify(&path, &sha256)?;
        let provenance = Provenance {
            source: self.wanted.clone(),
            repository: Some(self.handle.repo_path()),
            revision: Some(commit),
            file: name.clone(),
            bytes,
            sha256,
        };
        Ok(DataFile { name, path, provenance })
    }
}
