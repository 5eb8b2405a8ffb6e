//! Errors of fetching weights and data from the hub, each with its remedy.

use std::{io, path::PathBuf};

/// Error of a text that is not a source of files.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{written}` is not a source: {problem}; expected `hf:owner/name`, `hf:owner/name@revision` or a path"
)]
pub struct SourceError {
    /// Text as written by the user.
    pub written: String,
    /// Reason why it is invalid.
    pub problem: String,
}

/// Error of fetching weights or data, with its remedy.
///
/// `wanted` is the source as written, `endpoint` the address of the hub, `cache` the folder of fetched files, `path` a
/// local file or folder, `reason` the message of the operating system or of the HTTP client.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "fields of one name have one meaning, explained above")]
pub enum HubError {
    /// A path that does not exist.
    #[error("there is no file or folder at `{path}`; a repository on the hub is written `hf:owner/name`")]
    NoPath { path: PathBuf },
    /// A folder without weights.
    #[error(
        "the folder `{path}` has no file `model.safetensors` or `pytorch_model.bin`; specify a folder \
         with such a file, or the weight file itself"
    )]
    NoWeightsInFolder { path: PathBuf },
    /// A path to a device, a socket or the like.
    #[error(
        "`{path}` is neither a file nor a folder; specify a safetensors or PyTorch file, or a folder with \
         `model.safetensors` or `pytorch_model.bin`"
    )]
    NotAFile { path: PathBuf },
    /// A repository, in a build without hub support.
    #[error(
        "`{wanted}` is a repository on the hub, and this build has no hub support: build with the cargo \
         feature `hub`, or name a file or folder"
    )]
    NoClient { wanted: String },
    /// A file that exists and cannot be read.
    #[error("cannot read `{path}`: {reason}{}", remedy(.reason))]
    Unreadable { path: PathBuf, reason: io::Error },
    /// Offline mode, and the cache has no copy.
    #[error(
        "`{wanted}` is not in the cache `{cache}` and cannot be fetched in offline mode (HF_HUB_OFFLINE); fetch it \
         once with HF_HUB_OFFLINE unset, or point HF_HOME or HF_HUB_CACHE at a cache that has it"
    )]
    Offline { wanted: String, cache: PathBuf },
    /// The hub cannot be reached, and the cache has no copy.
    #[error(
        "`{wanted}` is not in the cache `{cache}` and {endpoint} cannot be reached ({reason}); check the \
         network, or copy the files here and name their path"
    )]
    Unreachable { wanted: String, endpoint: String, cache: PathBuf, reason: String },
    /// The hub requires authentication (401). The hub gives the same answer for a repository that does not exist.
    #[error(
        "{endpoint} denies access to `{wanted}` without a valid token: the repository is private or gated, or does \
         not exist; check the name, and set HF_TOKEN to a valid token that may read it"
    )]
    TokenRequired { wanted: String, endpoint: String },
    /// The hub denies access to the account of the token (403).
    #[error(
        "{endpoint} denies the account of this token access to `{wanted}`: request access on the repository's \
         page, or set HF_TOKEN to a token that may read it"
    )]
    Forbidden { wanted: String, endpoint: String },
    /// The repository does not exist.
    #[error(
        "{endpoint} has no {kind} repository for `{wanted}`; check the owner and the name (and HF_TOKEN, \
         if the repository is private)"
    )]
    NoRepository { wanted: String, kind: &'static str, endpoint: String },
    /// The repository exists without this revision.
    #[error(
        "the repository of `{wanted}` has no revision `{revision}`; write a branch, tag or full commit \
         hash that its page lists"
    )]
    NoRevision { wanted: String, revision: String },
    /// The revision exists without weights.
    #[error(
        "the repository of `{wanted}` has no file `model.safetensors` or `pytorch_model.bin` at revision \
         `{revision}`; choose a repository or a revision with weights in such a file"
    )]
    NoWeights { wanted: String, revision: String },
    /// A file of a data set that disappeared during the transfer.
    #[error(
        "the repository of `{wanted}` lists `{file}` at revision `{revision}` but does not have it; try \
         again, or name a commit in place of a branch"
    )]
    NoData { wanted: String, file: String, revision: String },
    /// A cached file whose checksum differs from the checksum on the hub.
    #[error(
        "the cached copy of `{wanted}` is damaged: `{file}` has the SHA-256 {found}, expected {expected}; \
         delete the folder `{folder}` and fetch again"
    )]
    Damaged { wanted: String, file: PathBuf, folder: PathBuf, expected: String, found: String },
    /// The cache cannot be written.
    #[error(
        "cannot store `{wanted}` in the cache `{cache}`: {reason}; free some space, or point HF_HOME or \
                 HF_HUB_CACHE at a writable folder"
    )]
    Cache { wanted: String, cache: PathBuf, reason: String },
    /// The HTTP client cannot be set up.
    #[error(
        "cannot fetch `{wanted}`: {reason}; check HF_ENDPOINT, which must be the http(s) address of a \
         hub if it is set, and that this system has CA certificates"
    )]
    Client { wanted: String, reason: String },
    /// The server at the address does not behave like a hub.
    #[error(
        "cannot fetch `{wanted}` from {endpoint}: {reason}; check HF_ENDPOINT, which must be the http(s) \
         address of a hub if it is set"
    )]
    Endpoint { wanted: String, endpoint: String, reason: String },
    /// The connection broke or was silent for too long, or the server reported an error.
    #[error("the transfer of `{wanted}` from {endpoint} {problem}; try again")]
    Transfer { wanted: String, endpoint: String, problem: String },
    /// `HF_HUB_DOWNLOAD_TIMEOUT` is not a time limit.
    #[error("HF_HUB_DOWNLOAD_TIMEOUT = `{value}` is not valid: expected a whole number of seconds above 0")]
    Timeout { value: String },
}

/// Returns the end of a message about a file that cannot be read. The reasons of
/// [`files::open`](crate::system::files::open) contain the remedy.
fn remedy(reason: &io::Error) -> &'static str {
    match reason.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => "",
        _ => "; check the file and its permissions",
    }
}

impl HubError {
    /// Returns whether the user can fix the error. Only a broken transfer is not the user's error.
    pub fn is_user_error(&self) -> bool {
        !matches!(self, Self::Transfer { .. })
    }
}
