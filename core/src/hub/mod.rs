//! Where weight files come from: a model repository on the Hugging Face Hub, or a path on this
//! machine.
//!
//! A repository is fetched into the cache that the other Hugging Face libraries use, so a file
//! that any of them has downloaded is found again. The usual environment variables apply:
//!
//! | variable | effect |
//! | --- | --- |
//! | `HF_HOME`, `HF_HUB_CACHE` | where the cache (and the token file) lies |
//! | `HF_TOKEN`, `HF_TOKEN_PATH` | who asks, for private and gated repositories |
//! | `HF_ENDPOINT` | a mirror in place of `https://huggingface.co` |
//! | `HF_HUB_OFFLINE` | `1`, `true`, `yes` or `on`: read the cache, never the network |
//!
//! The weights are `model.safetensors`, or `pytorch_model.bin` where there is no such file. All
//! files of a repository are taken from one commit, and that commit is reported: a branch that
//! moves between two runs, or during one, shows in their records.

use std::error::Error;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use hf_hub::{HFClient, HFClientSync, HFError, HFRepositorySync, RepoType, RepoTypeModel};
use sha2::{Digest, Sha256};

pub use crate::traits::Provenance;

pub mod checksum_list;
pub mod dataset;
pub use dataset as data;

pub use crate::error::{HubError, SourceError};
/// Names of weight files, the preferred one first.
const WEIGHTS: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];
const CONFIG: &str = "config.json";
const PREPROCESSOR: &str = "preprocessor_config.json";
const DEFAULT_REVISION: &str = "main";

/// Further attempts after a request has failed. Fewer than the client's own default: a machine
/// that cannot reach the hub should find its cached copy within a second.
const RETRIES: usize = 2;

/// A weight source as written in a config: `hf:owner/name`, `hf:owner/name@revision`, or a path
/// to a safetensors or PyTorch file or to a folder with `model.safetensors` or
/// `pytorch_model.bin` (and, where there are such, `config.json` and `preprocessor_config.json`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WeightSource {
    /// A model repository on the hub.
    Hub {
        /// `owner/name`.
        repo: String,
        /// A branch, tag or commit; the branch `main` if none is given.
        revision: Option<String>,
    },
    /// A file or folder on this machine.
    Path(PathBuf),
}

impl FromStr for WeightSource {
    type Err = SourceError;

    fn from_str(written: &str) -> Result<Self, Self::Err> {
        let refuse = |problem: String| Err(SourceError { written: written.to_owned(), problem });
        if written.is_empty() {
            return refuse("it is empty".to_owned());
        }
        if written.trim() != written {
            return refuse("it begins or ends with white space".to_owned());
        }
        let Some(repository) = written.strip_prefix("hf:") else {
            return Ok(Self::Path(PathBuf::from(written)));
        };

        let (repo, revision) = match repository.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision)),
            None => (repository, None),
        };
        let Some((owner, name)) = repo.split_once('/') else {
            return refuse("`hf:` must be followed by an owner, a `/` and a name".to_owned());
        };
        for part in [owner, name] {
            if !is_repository_name(part) {
                return refuse(format!("`{part}` cannot be an owner or a name on the hub"));
            }
        }
        if let Some(revision) = revision
            && !is_revision(revision)
        {
            return refuse(format!("`{revision}` cannot be a branch, a tag or a commit"));
        }
        Ok(Self::Hub { repo: repo.to_owned(), revision: revision.map(str::to_owned) })
    }
}

impl fmt::Display for WeightSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hub { repo, revision: Some(revision) } => write!(f, "hf:{repo}@{revision}"),
            Self::Hub { repo, revision: None } => write!(f, "hf:{repo}"),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

/// The hub's rules for owners and names. They also keep the folder that the cache derives from
/// the two (`models--owner--name`) unambiguous and inside the cache.
fn is_repository_name(text: &str) -> bool {
    let edge = |c| matches!(c, '-' | '.');
    !text.is_empty()
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        && !text.starts_with(edge)
        && !text.ends_with(edge)
        && !text.contains("--")
        && !text.contains("..")
}

/// Git's rules for reference names, which commit hashes obey as well. The cache keeps a file of
/// this name for each revision, so a revision that climbs out of its folder must not pass.
fn is_revision(text: &str) -> bool {
    text.split('/').all(|part| !part.is_empty() && !part.starts_with('.'))
        && !text.contains("..")
        && !text.contains(|c: char| {
            c.is_whitespace() || c.is_control() || matches!(c, '~' | '^' | ':' | '?' | '*' | '[' | '\\')
        })
}

/// Files on this machine, ready to read.
#[derive(Debug, Clone)]
pub struct WeightFiles {
    /// The safetensors file or PyTorch state dict.
    pub weights: PathBuf,
    /// The `config.json` beside it in its repository or folder. `None` where there is none, and
    /// always for a source that names a single file: its neighbours may describe something else.
    pub config: Option<PathBuf>,
    /// The `preprocessor_config.json` there, likewise.
    pub preprocessor: Option<PathBuf>,
    /// What the weights are.
    pub provenance: Provenance,
}

/// Brings the files of `source` onto this machine and says what they are.
///
/// The weights are read once in full, for their checksum. Blocks while it downloads; may be called
/// from a thread of any async runtime.
///
/// For a repository, the hub is asked where the revision stands now. If it gives no answer, a copy
/// of that revision in the cache is used instead, with a warning. It is not asked at all when
/// `HF_HUB_OFFLINE` forbids it, or when the revision is a full commit hash, whose files never
/// change, and the cache holds them.
pub fn fetch(source: &WeightSource) -> Result<WeightFiles, HubError> {
    match source {
        WeightSource::Hub { repo, revision } => {
            let revision = revision.as_deref().unwrap_or(DEFAULT_REVISION);
            from_hub(source.to_string(), repo, revision)
        }
        WeightSource::Path(path) => from_path(source.to_string(), path),
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
    Ok(WeightFiles { provenance, weights, config, preprocessor })
}

fn from_hub(wanted: String, repo: &str, revision: &str) -> Result<WeightFiles, HubError> {
    let repository = Repository::<RepoTypeModel>::open(wanted, repo, revision)?;
    let snapshot = repository.snapshot()?;
    let provenance = repository.checked(&snapshot.weights, &file_name(&snapshot.weights), snapshot.commit)?;
    Ok(WeightFiles {
        provenance,
        weights: snapshot.weights,
        config: snapshot.config,
        preprocessor: snapshot.preprocessor,
    })
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

    /// Origin of the cached file `file`, called `name` in the repository, whose checksum must be the one that the hub
    /// lists. The client stores what a server sends in answer to a download without looking at it, an error page
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

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Length and SHA-256 of a file.
pub(crate) fn checksum(path: &Path) -> Result<(u64, String), HubError> {
    let unreadable = |reason| HubError::Unreadable { path: path.to_owned(), reason };
    let mut file = File::open(path).map_err(unreadable)?;
    let mut hasher = Sha256::new();
    let mut bytes = 0;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                hasher.update(&buffer[..count]);
                bytes += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(error)),
        }
    }
    Ok((bytes, crate::system::hex(&hasher.finalize())))
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
