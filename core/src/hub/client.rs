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

/// Further attempts after a request has failed. Fewer than the client's own default: a machine
/// that cannot reach the hub should find its cached copy within a second.
const RETRIES: usize = 2;

/// Fetches the weight files of a model repository.
///
/// # Errors
/// Repositories, revisions and files that cannot be had, with what to do about it.
pub(super) fn weights(wanted: String, repo: &str, revision: &str) -> Result<WeightFiles, HubError> {
    let repository = Repository::<RepoTypeModel>::open(wanted, repo, revision)?;
    let Snapshot { commit, weights, config, preprocessor, .. } = repository.snapshot()?;
    let provenance = repository.checked(&weights, &file_name(&weights), commit)?;
    Ok(WeightFiles { weights, config, preprocessor, provenance })
}

/// Fetches those files of a data set repository that `choose` takes from the names of all its files, which are sorted.
///
/// # Errors
/// Errors of `choose`, and repositories, revisions and files that cannot be had.
pub(super) fn dataset(
    wanted: String,
    repo: &str,
    revision: &str,
    choose: impl Fn(&[String]) -> crate::error::Result<Vec<String>>,
    seen: &dyn Fn(),
) -> crate::error::Result<Vec<DataFile>> {
    let repository = Repository::<RepoTypeDataset>::open(wanted, repo, revision)?;
    let files = repository.files(choose, seen)?;
    let checked = |CachedFile { commit, name, path }| {
        let provenance = repository.checked(&path, &name, commit)?;
        Ok(DataFile { name, path, provenance })
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

/// The files of a repository at one commit, in the cache.
struct Snapshot {
    commit: String,
    weights: PathBuf,
    config: Option<PathBuf>,
    preprocessor: Option<PathBuf>,
    /// Whether what is not here is known to be missing from the repository.
    complete: bool,
}

/// What the cache knows of a file.
enum Cached {
    Here(PathBuf),
    /// The hub has no such file at this commit, and the cache remembers.
    Missing,
    /// The cache was never told.
    Unknown,
}

impl<T: RepoType> Repository<T> {
    fn open(wanted: String, repo: &str, revision: &str) -> Result<Self, HubError> {
        let opened = HFClient::builder().retry_max_attempts(RETRIES).build().and_then(|client| {
            let endpoint = client.endpoint().to_owned();
            let cache = client.cache_dir().to_owned();
            Ok((HFClientSync::from_inner(client)?, endpoint, cache))
        });
        let (client, endpoint, cache) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                return Err(HubError::Client { wanted, reason: reason(&error) });
            }
        };
        let (owner, name) = hf_hub::split_id(repo);
        let handle = client.repository(T::default(), owner, name);
        Ok(Self { handle, wanted, revision: revision.to_owned(), endpoint, cache })
    }

    /// The files, from wherever they may and can be had.
    fn snapshot(&self) -> Result<Snapshot, HubError> {
        let cached = self.cached()?;
        let settled = cached.as_ref().is_some_and(|cached| cached.complete && cached.commit == self.revision);
        if settled || offline() {
            return cached
                .ok_or_else(|| HubError::Offline { wanted: self.wanted.clone(), cache: self.cache.clone() });
        }
        match (self.stands(), cached) {
            (Ok(()), _) => self.download(),
            (Err(error), Some(cached)) if gave_no_answer(&error) => {
                tracing::warn!(
                    "{} gives no answer ({}): using the cached copy of `{}`, commit {}",
                    self.endpoint,
                    reason(&error),
                    self.wanted,
                    cached.commit,
                );
                Ok(cached)
            }
            (Err(error), _) => Err(self.explain(error)),
        }
    }

    /// The files as the cache has them, if it has the weights.
    fn cached(&self) -> Result<Option<Snapshot>, HubError> {
        let mut complete = true;
        let mut weights = None;
        for name in WEIGHTS {
            match self.look_up(name, &self.revision)? {
                Cached::Here(path) => {
                    weights = Some(path);
                    break;
                }
                Cached::Missing => {}
                // The hub may have the preferred file.
                Cached::Unknown => complete = false,
            }
        }
        let Some(weights) = weights else { return Ok(None) };
        let commit = commit_of(&weights);
        let mut beside = |name| -> Result<Option<PathBuf>, HubError> {
            Ok(match self.look_up(name, &commit)? {
                Cached::Here(path) => Some(path),
                Cached::Missing => None,
                Cached::Unknown => {
                    complete = false;
                    None
                }
            })
        };
        let (config, preprocessor) = (beside(CONFIG)?, beside(PREPROCESSOR)?);
        Ok(Some(Snapshot { commit, weights, config, preprocessor, complete }))
    }

    fn look_up(&self, file: &str, revision: &str) -> Result<Cached, HubError> {
        let download = self.handle.download_file().filename(file).revision(revision);
        match download.local_files_only(true).send() {
            Ok(path) => Ok(Cached::Here(path)),
            Err(HFError::EntryNotFound { .. }) => Ok(Cached::Missing),
            Err(HFError::LocalEntryNotFound { .. }) => Ok(Cached::Unknown),
            Err(error) => Err(self.explain(error)),
        }
    }

    /// Asks the hub whether the repository and the revision exist.
    ///
    /// A question of its own, because a download says neither: to it, a repository, a revision and
    /// a file that is missing are all one, and if the hub cannot be reached it silently takes what
    /// the cache has.
    fn stands(&self) -> Result<(), HFError> {
        let repo_id = || self.handle.repo_path();
        if self.handle.revision_exists().revision(&self.revision).send()? {
            Ok(())
        } else if self.handle.exists().send()? {
            Err(HFError::RevisionNotFound {
                repo_id: repo_id(),
                revision: self.revision.clone(),
                context: None,
            })
        } else {
            Err(HFError::RepoNotFound { repo_id: repo_id(), context: None })
        }
    }

    /// The files as the hub has them now, through the cache.
    fn download(&self) -> Result<Snapshot, HubError> {
        tracing::info!("fetching `{}` from {}", self.wanted, self.endpoint);
        let [preferred, other] = WEIGHTS;
        let weights = match self.download_file(preferred, &self.revision) {
            Err(HFError::EntryNotFound { .. }) => self.download_file(other, &self.revision),
            found => found,
        };
        let weights = weights.map_err(|error| self.explain(error))?;
        // By its commit, so that all files stay together when the branch moves in between.
        let commit = commit_of(&weights);
        let beside = |name| match self.download_file(name, &commit) {
            Ok(path) => Ok(Some(path)),
            Err(HFError::EntryNotFound { .. }) => Ok(None),
            Err(error) => Err(self.explain(error)),
        };
        let (config, preprocessor) = (beside(CONFIG)?, beside(PREPROCESSOR)?);
        Ok(Snapshot { commit, weights, config, preprocessor, complete: true })
    }

    fn download_file(&self, file: &str, revision: &str) -> Result<PathBuf, HFError> {
        self.handle.download_file().filename(file).revision(revision).send()
    }

    /// Origin of the cached file `file`, called `name` in the repository. Its checksum must be the one that the hub
    /// lists: the client stores what a server sends in answer to a download without looking at it, an error page
    /// included.
    fn checked(&self, file: &Path, name: &str, commit: String) -> Result<Provenance, HubError> {
        let (bytes, found) = checksum(file)?;
        match listed_checksum(file) {
            Some(promised) if promised != found => Err(HubError::Damaged {
                wanted: self.wanted.clone(),
                file: file.to_owned(),
                folder: self.cache_folder(),
                promised,
                found,
            }),
            _ => Ok(Provenance {
                repository: Some(self.handle.repo_path()),
                revision: Some(commit),
                ..Provenance::local(&self.wanted, name, (bytes, found))
            }),
        }
    }

    fn cache_folder(&self) -> PathBuf {
        let name = format!("{}--{}", T::default().plural(), self.handle.repo_path().replace('/', "--"));
        self.cache.join(name)
    }

    fn explain(&self, error: HFError) -> HubError {
        let wanted = self.wanted.clone();
        let endpoint = self.endpoint.clone();
        let cache = self.cache.clone();
        let revision = self.revision.clone();
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
}

/// A file in the cache.
struct CachedFile {
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
    ) -> crate::error::Result<Vec<CachedFile>> {
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

    fn files_downloaded(&self, names: Vec<String>, seen: &dyn Fn()) -> Result<Vec<CachedFile>, HubError> {
        let mut files: Vec<CachedFile> = Vec::new();
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
            let commit = path.ancestors().nth(depth).map(file_name).unwrap_or_default();
            files.push(CachedFile { commit, name, path });
            seen();
        }
        Ok(files)
    }

    /// The chosen files as the cache has them, if it has any of this revision.
    fn files_cached(
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

/// The commit of a file in the cache, which lies at `…/snapshots/<commit>/<file>`.
fn commit_of(cached: &Path) -> String {
    cached.parent().map(file_name).unwrap_or_default()
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
    let HFError::Request { source, .. } = error else {
        return error.to_string();
    };
    let mut cause: &dyn Error = source;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
