//! The hub's client: repositories fetched into the cache that the other Hugging Face libraries use.

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

/// Further attempts after a request has failed. Fewer than the client's own default: a machine that cannot reach the hub should
/// find its cached copy within a second.
const RETRIES: usize = 2;
/// Branch that stands for a repository where its source names no revision.
const DEFAULT_REVISION: &str = "main";

/// Fetches the weight files of a model repository.
pub(super) fn weights(wanted: String, repo: &str, revision: Option<&str>) -> Result<WeightFiles, HubError> {
    let repository = Repository::<RepoTypeModel>::open(wanted, repo, revision)?;
    // A commit's files never change: the hub need not be asked if the cache has them all.
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
        None => repository.newest(|| Ok(cached), || repository.stands(), download)?,
    };
    let path = |name: &str| files.iter().find(|file| file.name == name).map(|file| file.path.clone());
    Ok(WeightFiles {
        weights: files[0].path.clone(),
        config: path(CONFIG),
        preprocessor: path(PREPROCESSOR),
        provenance: repository.checked(&files[0])?,
    })
}

/// Fetches those files of a data set repository that `choose` takes from the names of all its files, which are sorted.
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
        || repository.stands().and_then(|()| repository.data_listed()),
        |names| Ok(repository.data_downloaded(choose(&names)?, seen)?),
    )?;
    let checked = |file: CachedFile| {
        let provenance = repository.checked(&file)?;
        Ok(DataFile { name: file.name, path: file.path, provenance })
    };
    files.into_iter().map(checked).collect()
}

/// A repository at one revision, and what its error messages need.
struct Repository<T: RepoType> {
    handle: HFRepositorySync<T>,
    wanted: String,
    revision: String,
    endpoint: String,
    cache: PathBuf,
}

/// A file in the cache, called `name` in the repository.
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

    /// Newest version on the hub, by `fetch` from the answer to `ask`, or the cached one if the hub gives no answer or may not
    /// be asked.
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
        let cached = if gave_no_answer(&error) { cached()? } else { None };
        let Some(files) = cached else { return Err(self.explain(error).into()) };
        tracing::warn!(
            "{} gives no answer ({}): using the cached copy of `{}`, commit {}",
            self.endpoint,
            reason(&error),
            self.wanted,
            files.first().map_or("unknown", |file| &file.commit),
        );
        Ok(files)
    }

    /// The file as the hub has it, through the cache, or with `local` as the cache has it.
    fn file(&self, name: &str, revision: &str, local: bool) -> Result<CachedFile, HFError> {
        let download = self.handle.download_file().filename(name).revision(revision);
        let path = download.local_files_only(local).send()?;
        // It lies at `…/snapshots/<commit>/<name>`.
        let depth = Path::new(name).components().count();
        let commit = path.ancestors().nth(depth).map(file_name).unwrap_or_default();
        Ok(CachedFile { commit, name: name.into(), path })
    }

    /// Asks the hub whether the repository and the revision exist.
    ///
    /// A question of its own, because a download says neither: to it, a repository, a revision and a file that is
    /// missing are all one, and if the hub cannot be reached it silently takes what the cache has.
    fn stands(&self) -> Result<(), HFError> {
        if self.handle.revision_exists().revision(&self.revision).send()? {
            return Ok(());
        }
        let (repo_id, revision, context) = (self.handle.repo_path(), self.revision.clone(), None);
        Err(match self.handle.exists().send()? {
            true => HFError::RevisionNotFound { repo_id, revision, context },
            false => HFError::RepoNotFound { repo_id, context },
        })
    }

    /// Origin of a cached file. Its checksum must be the one that the hub lists: the client stores what a server sends in
    /// answer to a download without looking at it, an error page included.
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
                // Large files come from other hosts than the hub itself.
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

    /// Weights, if there are any, then the files beside them, all of the weights' commit: as the hub has them, or with `local`
    /// as the cache has them. And whether what is not here is known to be missing from the repository.
    fn weight_files(&self, local: bool) -> Result<(Option<Vec<CachedFile>>, bool), HubError> {
        let mut complete = true;
        let mut get = |name: &str, revision: &str| match self.file(name, revision, local) {
            Ok(file) => Ok(Some(file)),
            // The hub has no such file at this commit, and the cache remembers.
            Err(HFError::EntryNotFound { .. }) => Ok(None),
            // The cache was never told, and the hub may have it.
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

    /// The names of all files that the hub has.
    fn data_listed(&self) -> Result<Vec<String>, HFError> {
        let entries = self.handle.list_tree().revision(&self.revision).recursive(true).send()?;
        let files = entries.into_iter().filter_map(|entry| match entry {
            RepoTreeEntry::File { path, .. } => Some(path),
            RepoTreeEntry::Directory { .. } => None,
        });
        // A server that is no honest hub must not write outside the cache.
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
            // The first by the revision, which the cache then remembers; the others by the commit of
            // the first, so that all stay together when a branch moves in between.
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

    /// The chosen files as the cache has them, if it has any of this revision.
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

/// Whether `HF_HUB_OFFLINE` forbids the network. The client does not read it.
fn offline() -> bool {
    std::env::var("HF_HUB_OFFLINE")
        .is_ok_and(|value| ["1", "true", "yes", "on"].iter().any(|yes| value.eq_ignore_ascii_case(yes)))
}

/// Whether the hub could not be asked, as opposed to having answered with a refusal.
fn gave_no_answer(error: &HFError) -> bool {
    match error {
        HFError::Request { source, .. } => !source.is_builder() && !source.is_redirect(),
        HFError::Http { context } => context.status.is_server_error(),
        HFError::RateLimited { .. } => true,
        _ => false,
    }
}

/// The checksum in the name of a cached file's blob. Large files, which the hub keeps outside git,
/// are listed there by their SHA-256; for small ones the name is a git hash and says nothing.
fn listed_checksum(cached: &Path) -> Option<String> {
    let blob = file_name(&fs::canonicalize(cached).ok()?);
    let is_sha256 = blob.len() == 64 && blob.bytes().all(|b| b.is_ascii_hexdigit());
    is_sha256.then(|| blob.to_ascii_lowercase())
}

/// What went wrong, on one line. For a request that failed this is the innermost cause: the outer
/// ones only say that it was a request, and repeat its address.
fn reason(error: &HFError) -> String {
    let HFError::Request { source, .. } = error else { return error.to_string() };
    let mut cause: &dyn Error = source;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
