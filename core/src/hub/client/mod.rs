//! Fetching of repositories of the Hugging Face Hub into the cache that other Hugging Face libraries use.

mod cache;
mod connection;
mod environment;
mod listing;
mod transfer;

use std::{
    io,
    path::{Component, Path},
    thread,
};

use hf_hub::repository::{RepoType, RepoTypeDataset, RepoTypeModel};
use tokio::runtime;

use self::{
    cache::{CachedFile, Digest, Lookup, RepositoryCache},
    connection::Connection,
    environment::{Environment, public},
    transfer::Answer,
};
use crate::{
    error::HubError,
    hub::{
        WeightFiles, checksum,
        dataset::DataFile,
        file_name,
        weight_files::{CONFIG, PREPROCESSOR, WEIGHTS},
    },
    traits::Provenance,
};

/// Branch used when a source names no revision.
const DEFAULT_REVISION: &str = "main";

/// Fetches the weight files of a model repository.
pub(super) fn weights(wanted: String, repo: &str, revision: Option<&str>) -> Result<WeightFiles, HubError> {
    let repository = Repository::<RepoTypeModel>::new(wanted, repo, revision)?;
    // The files of a commit never change, so no request is needed if the cache contains all of them.
    let (cached, complete) = repository.cached_weights();
    let settled = complete && Digest::commit(&repository.revision).is_some();
    let files = match cached {
        Some(files) if settled => files,
        cached => repository.newest(|| Ok(cached), |network| repository.fetch_weights(network))?,
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
    let repository = Repository::<RepoTypeDataset>::new(wanted, repo, revision)?;
    let files = repository.newest(
        || repository.cached_data(&choose),
        |network| {
            let names = choose(&repository.list(network)?)?;
            Ok(repository.fetch_data(network, names, seen)?)
        },
    )?;
    let checked = |file: CachedFile| {
        let provenance = repository.checked(&file)?;
        Ok(DataFile { name: file.name, path: file.path, provenance })
    };
    files.into_iter().map(checked).collect()
}

/// Repository at one revision, with the details that its error messages need. Reading the cache needs no network.
struct Repository<T: RepoType> {
    wanted: String,
    /// Owner and name, `owner/name`.
    id: String,
    revision: String,
    environment: Environment,
    /// Address of the hub as printed in messages.
    endpoint: String,
    cache: RepositoryCache,
    kind: T,
}

/// Client of the hub and the runtime that drives it.
struct Network {
    connection: Connection,
    runtime: runtime::Runtime,
}

impl Network {
    /// Runs a request to its end, on a new thread: the caller's thread may belong to another async runtime, in which
    /// waiting for a request panics.
    fn run<A: Send, R: Future<Output = A>>(&self, request: impl FnOnce() -> R + Send) -> A {
        thread::scope(|scope| {
            let request = scope.spawn(|| self.runtime.block_on(request()));
            request.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl<T: RepoType> Repository<T> {
    fn new(wanted: String, id: &str, revision: Option<&str>) -> Result<Self, HubError> {
        let (environment, kind) = (Environment::read()?, T::default());
        let endpoint = public(&environment.endpoint);
        let cache = RepositoryCache::new(&environment.cache, kind.plural(), id);
        let revision = revision.unwrap_or(DEFAULT_REVISION).to_owned();
        Ok(Self { wanted, id: id.to_owned(), revision, environment, endpoint, cache, kind })
    }

    /// Sets up the client; sends nothing.
    fn connect(&self) -> Result<Network, HubError> {
        let connection = Connection::new(&self.wanted, &self.environment)?;
        let unusable =
            |error: io::Error| HubError::Client { wanted: self.wanted.clone(), reason: error.to_string() };
        let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(unusable)?;
        Ok(Network { connection, runtime })
    }

    /// Fetches the newest version on the hub with `fetch`. Returns the cached version if the hub does not respond or
    /// `HF_HUB_OFFLINE` forbids requests.
    fn newest<E: From<HubError>>(
        &self,
        cached: impl FnOnce() -> Result<Option<Vec<CachedFile>>, E>,
        fetch: impl FnOnce(&Network) -> Result<Vec<CachedFile>, E>,
    ) -> Result<Vec<CachedFile>, E> {
        if self.environment.offline {
            let cache = self.environment.cache.clone();
            let missing = || HubError::Offline { wanted: self.wanted.clone(), cache };
            return cached()?.ok_or_else(|| missing().into());
        }
        let connected = self.connect().and_then(|network| self.check_exists(&network).map(|()| network));
        let error = match connected {
            Ok(network) => return fetch(&network),
            Err(error) => error,
        };
        let reason = match &error {
            HubError::Unreachable { reason, .. } | HubError::Client { reason, .. } => reason,
            HubError::Transfer { problem, .. } => problem,
            _ => return Err(error.into()),
        };
        let Some(files) = cached()? else { return Err(error.into()) };
        tracing::warn!(
            "{} does not respond ({reason}); using the cached copy of `{}`, commit {}",
            self.endpoint,
            self.wanted,
            files.first().map_or("unknown", |file| file.commit.as_str()),
        );
        Ok(files)
    }

    /// Checks on the hub that the repository and the revision exist.
    fn check_exists(&self, network: &Network) -> Result<(), HubError> {
        let (wanted, endpoint) = (self.wanted.clone(), self.endpoint.clone());
        let repository: Vec<&str> = [self.kind.plural()].into_iter().chain(self.id.split('/')).collect();
        let revision = [&repository[..], &["revision", &self.revision]].concat();
        if network.run(|| network.connection.exists(&revision))? {
            return Ok(());
        }
        Err(match network.run(|| network.connection.exists(&repository))? {
            true => HubError::NoRevision { wanted, revision: self.revision.clone() },
            false => HubError::NoRepository { wanted, kind: self.kind.singular(), endpoint },
        })
    }

    /// Fetches a file of the hub into the cache. Returns `None` if the revision has no such file.
    fn fetch(&self, network: &Network, revision: &str, name: &str) -> Result<Option<CachedFile>, HubError> {
        if Digest::commit(revision).is_some() {
            match self.cache.lookup(revision, name) {
                Lookup::Found(file) => return Ok(Some(file)),
                Lookup::Absent => return Ok(None),
                Lookup::Unknown => {}
            }
        }
        let unwritable = |error: io::Error| HubError::Cache {
            wanted: self.wanted.clone(),
            cache: self.environment.cache.clone(),
            reason: error.to_string(),
        };
        let path = format!("{}{}", self.kind.url_prefix(), self.id);
        match network.run(|| transfer::file(&network.connection, &path, revision, name, &self.cache))? {
            Answer::File { commit, etag } => {
                Ok(Some(self.cache.add(revision, commit, name, &etag).map_err(unwritable)?))
            }
            Answer::Missing(commit) => {
                if let Some(commit) = commit {
                    self.cache.add_absence(revision, &commit, name).map_err(unwritable)?;
                }
                Ok(None)
            }
        }
    }

    /// Fetches the weights, followed by their configuration files, if the same commit has any.
    fn fetch_weights(&self, network: &Network) -> Result<Vec<CachedFile>, HubError> {
        let get = |revision: &str, name: &str| self.fetch(network, revision, name);
        let [preferred, other] = WEIGHTS;
        let weights = match get(&self.revision, preferred)? {
            None => get(&self.revision, other)?,
            found => found,
        };
        let Some(weights) = weights else {
            let (wanted, revision) = (self.wanted.clone(), self.revision.clone());
            return Err(HubError::NoWeights { wanted, revision });
        };
        let commit = weights.commit.as_str();
        let beside = [get(commit, CONFIG)?, get(commit, PREPROCESSOR)?];
        Ok([Some(weights)].into_iter().chain(beside).flatten().collect())
    }

    /// Returns the cached weights followed by their cached configuration files. The second value is false if the cache
    /// lacks a file and does not record that the commit has no such file.
    fn cached_weights(&self) -> (Option<Vec<CachedFile>>, bool) {
        let mut complete = true;
        let mut get = |name: &str| match self.cache.lookup(&self.revision, name) {
            Lookup::Found(file) => Some(file),
            Lookup::Absent => None,
            Lookup::Unknown => {
                complete = false;
                None
            }
        };
        let [preferred, other] = WEIGHTS;
        let Some(weights) = get(preferred).or_else(|| get(other)) else { return (None, complete) };
        let files = [Some(weights), get(CONFIG), get(PREPROCESSOR)].into_iter().flatten().collect();
        (Some(files), complete)
    }

    /// Returns the provenance of a cached file after comparing its checksum with the hub's.
    fn checked(&self, CachedFile { commit, name, path }: &CachedFile) -> Result<Provenance, HubError> {
        let (bytes, found) = checksum(path)?;
        match listed_checksum(path) {
            Some(promised) if promised != found => Err(HubError::Damaged {
                wanted: self.wanted.clone(),
                file: path.clone(),
                folder: self.cache.folder.clone(),
                expected: promised,
                found,
            }),
            _ => Ok(Provenance {
                repository: Some(self.id.clone()),
                revision: Some(commit.as_str().to_owned()),
                ..Provenance::local(&self.wanted, name, (bytes, found))
            }),
        }
    }

    /// Lists the names of all files on the hub, sorted.
    fn list(&self, network: &Network) -> Result<Vec<String>, HubError> {
        let path = format!("{}/{}", self.kind.plural(), self.id);
        let mut names = network.run(|| listing::names(&network.connection, &path, &self.revision))?;
        // A malicious server must not write outside the cache.
        names.retain(|name| Path::new(name).components().all(|part| matches!(part, Component::Normal(_))));
        names.sort();
        names.dedup();
        Ok(names)
    }

    fn fetch_data(
        &self,
        network: &Network,
        names: Vec<String>,
        seen: &dyn Fn(),
    ) -> Result<Vec<CachedFile>, HubError> {
        let mut files: Vec<CachedFile> = Vec::new();
        for name in names {
            // The first file is fetched by revision, which the cache records; the others by the commit of the first, so
            // that all files are consistent even if the branch moves in between.
            let revision = files.first().map_or(&*self.revision, |first| first.commit.as_str());
            let Some(file) = self.fetch(network, revision, &name)? else {
                let (wanted, revision) = (self.wanted.clone(), self.revision.clone());
                return Err(HubError::NoData { wanted, file: name, revision });
            };
            files.push(file);
            seen();
        }
        Ok(files)
    }

    /// Returns the chosen files from the cache, if it contains this revision.
    fn cached_data(
        &self,
        choose: impl Fn(&[String]) -> crate::error::Result<Vec<String>>,
    ) -> crate::error::Result<Option<Vec<CachedFile>>> {
        let Some(cached) = self.cache.names(&self.revision) else { return Ok(None) };
        let (commit, names) = cached?;
        let files = choose(&names)?.into_iter().map(|name| {
            let path = self.cache.snapshot(&commit).join(&name);
            CachedFile { commit: commit.clone(), name, path }
        });
        Ok(Some(files.collect()))
    }
}

/// Returns the checksum in the name of a cached file's blob. The blobs of large files, which the hub stores outside
/// git, are named by their SHA-256; those of small files by a git hash, which is not a checksum of the contents alone.
fn listed_checksum(cached: &Path) -> Option<String> {
    let blob = file_name(&std::fs::canonicalize(cached).ok()?);
    Digest::etag(&blob)?.sha256().map(str::to_owned)
}
