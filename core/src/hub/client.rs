//! Client of the Hugging Face Hub. Fetches repositories into the cache that other Hugging Face libraries use.

use std::{
    error::Error,
    fs,
    path::{Component, Path, PathBuf},
};

use hf_hub::{
    HFClient, HFClientSync, HFError, HFRepositorySync, RepoType, RepoTypeDataset, RepoTypeModel,
    repository::RepoTreeEntry,
};

use crate::{
    error::HubError,
    hub::{
        WeightFiles, checksum,
        dataset::{DataFile, names_below},
        file_name,
        weight_files::{CONFIG, PREPROCESSOR, WEIGHTS},
    },
    traits::Provenance,
};

/// Number of retries of a failed request. Smaller than the client's default, so that without a connection the cached
/// copy is used within a second.
const RETRIES: usize = 2;
/// Branch used when a source names no revision.
const DEFAULT_REVISION: &str = "main";

/// Fetches the weight files of a model repository.
pub(super) fn weights(wanted: String, repo: &str, revision: Option<&str>) -> Result<WeightFiles, HubError> {
    let repository = Repository::<RepoTypeModel>::open(wanted, repo, revision)?;
    // The files of a commit never change, so no request is needed if the cache contains all of them.
    let (cached, complete) = repository.weight_files(true)?;
    let settled = cached.as_ref().filter(|files| complete && files[0].commit == repository.revision);
    let download = |()| {
        tracing::info!("fetching `{}` from {}", repository.wanted, repository.endpoint);
        let (files, _) = repository.weight_files(false)?;
        let (wanted, revision) = (repository.wanted.clone(), repository.revision.clone());
        files.ok_or(HubError::NoWeights { wanted, revision })
    };
    let files = match settled {
        Some(files) => files.clone(),
        None => repository.newest(|| Ok(cached), || repository.check_exists(), download)?,
    };
    let path = |name: &str| files.iter().find(|file| file.name == name).map(|file| file.path.clone());
    Ok(WeightFiles {
        weights: files[0].path.clone(),
        config: path(CONFIG),
        preprocessor: path(PREPROCESSOR),
        provenance: repository.checked(&files[0])?,
    })
}

/// Fetches files of a data set repository. `choose` selects them from the sorted names of all files.
pub(super) fn dataset(
    wanted: String,
    repo: &str,
    revision: Option<&str>,
    choose: impl Fn(&[String]) -> crate::error::Result<Vec<String>>,
    seen: &dyn Fn(),
) -> crate::error::Result<Vec<DataFile>> {
    let repository = Repository::<RepoTypeDataset>::open(wanted, repo, revision)?;
    let files = repository.newest(
        || repository.data_cached(&choose),
        || repository.check_exists().and_then(|()| repository.data_listed()),
        |names| Ok(repository.data_downloaded(choose(&names)?, seen)?),
    )?;
    let checked = |file: CachedFile| {
        let provenance = repository.checked(&file)?;
        Ok(DataFile { name: file.name, path: file.path, provenance })
    };
    files.into_iter().map(checked).collect()
}

/// Repository at one revision, with the details that its error messages need.
struct Repository<T: RepoType> {
    handle: HFRepositorySync<T>,
    wanted: String,
    revision: String,
    endpoint: String,
    cache: PathBuf,
}

/// File in the cache; `name` is its path in the repository.
#[derive(Clone)]
struct CachedFile {
    commit: String,
    name: String,
    path: PathBuf,
}

impl<T: RepoType> Repository<T> {
    fn open(wanted: String, repo: &str, revision: Option<&str>) -> Result<Self, HubError> {
        let unusable = |error: HFError| HubError::Client { wanted: wanted.clone(), reason: reason(&error) };
        let client = HFClient::builder().retry_max_attempts(RETRIES).build().map_err(unusable)?;
        let (endpoint, cache) = (client.endpoint().to_owned(), client.cache_dir().to_owned());
        let (owner, name) = hf_hub::split_id(repo);
        let client = HFClientSync::from_inner(client).map_err(unusable)?;
        let handle = client.repository(T::default(), owner, name);
        let revision = revision.unwrap_or(DEFAULT_REVISION).to_owned();
        Ok(Self { handle, wanted, revision, endpoint, cache })
    }

    /// Fetches the newest version on the hub: `fetch` receives the response of `ask`. Returns the cached version if the
    /// hub does not respond or `HF_HUB_OFFLINE` forbids requests.
    fn newest<A, E: From<HubError>>(
        &self,
        cached: impl FnOnce() -> Result<Option<Vec<CachedFile>>, E>,
        ask: impl FnOnce() -> Result<A, HFError>,
        fetch: impl FnOnce(A) -> Result<Vec<CachedFile>, E>,
    ) -> Result<Vec<CachedFile>, E> {
        if offline() {
            let missing = || HubError::Offline { wanted: self.wanted.clone(), cache: self.cache.clone() };
            return cached()?.ok_or_else(|| missing().into());
        }
        let error = match ask() {
            Ok(answer) => return fetch(answer),
            Err(error) => error,
        };
        let cached = if is_unavailable(&error) { cached()? } else { None };
        let Some(files) = cached else { return Err(self.explain(error).into()) };
        tracing::warn!(
            "{} does not respond ({}); using the cached copy of `{}`, commit {}",
            self.endpoint,
            reason(&error),
            self.wanted,
            files.first().map_or("unknown", |file| &file.commit),
        );
        Ok(files)
    }

    /// Returns a file of the hub, downloaded into the cache if needed, or with `local` only from the cache.
    fn file(&self, name: &str, revision: &str, local: bool) -> Result<CachedFile, HFError> {
        let download = self.handle.download_file().filename(name).revision(revision);
        let path = download.local_files_only(local).send()?;
        // The path is `…/snapshots/<commit>/<name>`.
        let depth = Path::new(name).components().count();
        let commit = path.ancestors().nth(depth).map(file_name).unwrap_or_default();
        Ok(CachedFile { commit, name: name.into(), path })
    }

    /// Checks on the hub that the repository and the revision exist.
    ///
    /// A download cannot replace this request: it does not distinguish a missing repository, revision and file, and if
    /// the hub cannot be reached it silently uses the cache.
    fn check_exists(&self) -> Result<(), HFError> {
        if self.handle.revision_exists().revision(&self.revision).send()? {
            return Ok(());
        }
        let (repo_id, revision, context) = (self.handle.repo_path(), self.revision.clone(), None);
        Err(match self.handle.exists().send()? {
            true => HFError::RevisionNotFound { repo_id, revision, context },
            false => HFError::RepoNotFound { repo_id, context },
        })
    }

    /// Returns the provenance of a cached file after comparing its checksum with the hub's. The client stores any
    /// response to a download unchecked, including error pages.
    fn checked(&self, CachedFile { commit, name, path }: &CachedFile) -> Result<Provenance, HubError> {
        let (bytes, found) = checksum(path)?;
        match listed_checksum(path) {
            Some(promised) if promised != found => Err(HubError::Damaged {
                wanted: self.wanted.clone(),
                file: path.clone(),
                folder: self.cache_folder(),
                expected: promised,
                found,
            }),
            _ => Ok(Provenance {
                repository: Some(self.handle.repo_path()),
                revision: Some(commit.clone()),
                ..Provenance::local(&self.wanted, name, (bytes, found))
            }),
        }
    }

    fn cache_folder(&self) -> PathBuf {
        self.cache.join(format!("{}--{}", T::default().plural(), self.handle.repo_path().replace('/', "--")))
    }

    fn explain(&self, error: HFError) -> HubError {
        let (wanted, revision) = (self.wanted.clone(), self.revision.clone());
        let (endpoint, cache) = (self.endpoint.clone(), self.cache.clone());
        let reason = reason(&error);
        match error {
            HFError::AuthRequired { .. } => HubError::TokenRequired { wanted, endpoint },
            HFError::Forbidden { .. } => HubError::Forbidden { wanted, endpoint },
            HFError::RepoNotFound { .. } => {
                HubError::NoRepository { wanted, kind: T::default().singular(), endpoint }
            }
            HFError::RevisionNotFound { .. } => HubError::NoRevision { wanted, revision },
            HFError::EntryNotFound { .. } => HubError::NoWeights { wanted, revision },
            HFError::Io(_) | HFError::CacheLockTimeout { .. } => HubError::Cache { wanted, cache, reason },
            HFError::Request { source, .. } if source.is_connect() || source.is_timeout() => {
                // Large files are served by other hosts than the hub.
                let endpoint = source.url().map_or(endpoint, |url| url.origin().ascii_serialization());
                HubError::Unreachable { wanted, endpoint, cache, reason }
            }
            HFError::Request { source, .. } if !source.is_builder() && !source.is_redirect() => {
                HubError::Transfer { wanted, endpoint, reason }
            }
            HFError::Http { .. } | HFError::RateLimited { .. } | HFError::Xet { .. } => {
                HubError::Transfer { wanted, endpoint, reason }
            }
            _ => HubError::Endpoint { wanted, endpoint, reason },
        }
    }

    /// Returns the weights, if they exist, followed by their configuration files of the same commit; with `local`, only
    /// from the cache. The second value is false if the cache does not know whether a missing file exists on the hub.
    fn weight_files(&self, local: bool) -> Result<(Option<Vec<CachedFile>>, bool), HubError> {
        let mut complete = true;
        let mut get = |name: &str, revision: &str| match self.file(name, revision, local) {
            Ok(file) => Ok(Some(file)),
            // The hub has no such file at this commit, and the cache has recorded that.
            Err(HFError::EntryNotFound { .. }) => Ok(None),
            // The cache has no record of the file, which may exist on the hub.
            Err(HFError::LocalEntryNotFound { .. }) if local => {
                complete = false;
                Ok(None)
            }
            Err(error) => Err(self.explain(error)),
        };
        let [preferred, other] = WEIGHTS;
        let weights = match get(preferred, &self.revision)? {
            None => get(other, &self.revision)?,
            found => found,
        };
        let Some(weights) = weights else { return Ok((None, complete)) };
        let beside = [get(CONFIG, &weights.commit)?, get(PREPROCESSOR, &weights.commit)?];
        Ok((Some([Some(weights)].into_iter().chain(beside).flatten().collect()), complete))
    }

    /// Lists the names of all files on the hub.
    fn data_listed(&self) -> Result<Vec<String>, HFError> {
        let entries = self.handle.list_tree().revision(&self.revision).recursive(true).send()?;
        let files = entries.into_iter().filter_map(|entry| match entry {
            RepoTreeEntry::File { path, .. } => Some(path),
            RepoTreeEntry::Directory { .. } => None,
        });
        // A malicious server must not write outside the cache.
        let inside =
            |name: &String| Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        let mut names: Vec<String> = files.filter(inside).collect();
        names.sort();
        Ok(names)
    }

    fn data_downloaded(&self, names: Vec<String>, seen: &dyn Fn()) -> Result<Vec<CachedFile>, HubError> {
        let mut files: Vec<CachedFile> = Vec::new();
        for name in names {
            tracing::info!("fetching `{name}` of `{}` from {}", self.wanted, self.endpoint);
            // The first file is fetched by revision, which the cache records; the others by the commit of the first, so
            // that all files are consistent even if the branch moves in between.
            let revision = files.first().map_or(&self.revision, |first| &first.commit);
            files.push(self.file(&name, revision, false).map_err(|error| match error {
                HFError::EntryNotFound { .. } => {
                    let (wanted, revision) = (self.wanted.clone(), self.revision.clone());
                    HubError::NoData { wanted, file: name, revision }
                }
                error => self.explain(error),
            })?);
            seen();
        }
        Ok(files)
    }

    /// Returns the chosen files from the cache, if it contains this revision.
    fn data_cached(
        &self,
        choose: impl Fn(&[String]) -> crate::error::Result<Vec<String>>,
    ) -> crate::error::Result<Option<Vec<CachedFile>>> {
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
            CachedFile { commit: commit.clone(), name, path }
        });
        Ok(Some(files.collect()))
    }
}

/// Returns whether `HF_HUB_OFFLINE` forbids requests. The client library does not read this variable.
fn offline() -> bool {
    std::env::var("HF_HUB_OFFLINE")
        .is_ok_and(|value| ["1", "true", "yes", "on"].iter().any(|yes| value.eq_ignore_ascii_case(yes)))
}

/// Returns whether an error means that the hub is unavailable, as opposed to a rejected request.
fn is_unavailable(error: &HFError) -> bool {
    match error {
        HFError::Request { source, .. } => !source.is_builder() && !source.is_redirect(),
        HFError::Http { context } => context.status.is_server_error(),
        HFError::RateLimited { .. } => true,
        _ => false,
    }
}

/// Returns the checksum in the name of a cached file's blob. The blobs of large files, which the hub stores outside
/// git, are named by their SHA-256; those of small files by a git hash, which is not a checksum of the contents alone.
fn listed_checksum(cached: &Path) -> Option<String> {
    let blob = file_name(&fs::canonicalize(cached).ok()?);
    let is_sha256 = blob.len() == 64 && blob.bytes().all(|b| b.is_ascii_hexdigit());
    is_sha256.then(|| blob.to_ascii_lowercase())
}

/// Returns the reason of an error on one line. For a failed request this is the innermost cause: the outer errors only
/// repeat the address.
fn reason(error: &HFError) -> String {
    let HFError::Request { source, .. } = error else { return error.to_string() };
    let mut cause: &dyn Error = source;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
