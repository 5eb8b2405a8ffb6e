//! Why weights and data cannot be had from the hub, each with what to do.

use std::{io, path::PathBuf};

/// Text that names no source of files.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{written}` is not a source: {problem}; expected `hf:owner/name`, `hf:owner/name@revision` or a \
         path"
)]
pub struct SourceError {
    /// The text as it was given.
    pub written: String,
    /// What is wrong with it.
    pub problem: String,
}

/// Reason why weights or data cannot be had, with what to do about it.
///
/// `wanted` is the source as written, `endpoint` the hub that was asked, `cache` the folder of fetched files, `path` a
/// file or folder on this machine, `reason` the system's or the client's own message.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "fields of one name have one meaning, explained above")]
pub enum HubError {
    /// A path that leads nowhere.
    #[error("there is no file or folder at `{path}`; a repository on the hub is written `hf:owner/name`")]
    NoPath { path: PathBuf },
    /// A folder without weights.
    #[error(
        "the folder `{path}` has no file `model.safetensors` or `pytorch_model.bin`; name a folder that \
         has one, or the weight file itself"
    )]
    NoWeightsInFolder { path: PathBuf },
    /// A path to a device, a socket or the like.
    #[error(
        "`{path}` is neither a file nor a folder; name a safetensors or PyTorch file, or a folder with \
         `model.safetensors` or `pytorch_model.bin`"
    )]
    NotAFile { path: PathBuf },
    /// A repository, in a build that cannot fetch any.
    #[error(
        "`{wanted}` is a repository on the hub, and this build has no hub support: build with the cargo \
         feature `hub`, or name a file or folder"
    )]
    NoClient { wanted: String },
    /// A file that exists and cannot be read.
    #[error("cannot read `{path}`: {reason}; check the file and its permissions")]
    Unreadable { path: PathBuf, reason: io::Error },
    /// The network is forbidden and the cache has no copy.
    #[error(
        "`{wanted}` cannot be had: offline (HF_HUB_OFFLINE) and not in the cache `{cache}`; fetch it once \
         with HF_HUB_OFFLINE unset, or point HF_HOME or HF_HUB_CACHE at a cache that has it"
    )]
    Offline { wanted: String, cache: PathBuf },
    /// The hub cannot be reached and the cache has no copy.
    #[error(
        "`{wanted}` is not in the cache `{cache}` and {endpoint} cannot be reached ({reason}); check the \
         network, or copy the files here and name their path"
    )]
    Unreachable { wanted: String, endpoint: String, cache: PathBuf, reason: String },
    /// The hub wants to know who asks (401). It gives strangers the same answer for a repository that does not exist.
    #[error(
        "{endpoint} does not show `{wanted}` to this caller: the repository is private or gated, or does \
         not exist; check the name, and set HF_TOKEN to a valid token that may read it"
    )]
    TokenRequired { wanted: String, endpoint: String },
    /// The hub knows who asks and refuses (403).
    #[error(
        "{endpoint} refuses `{wanted}` to the account of this token: request access on the repository's \
         page, or set HF_TOKEN to a token that may read it"
    )]
    Forbidden { wanted: String, endpoint: String },
    /// No such repository.
    #[error(
        "{endpoint} has no {kind} repository for `{wanted}`; check the owner and the name (and HF_TOKEN, \
         if the repository is private)"
    )]
    NoRepository { wanted: String, kind: &'static str, endpoint: String },
    /// The repository is there, the revision is not.
    #[error(
        "the repository of `{wanted}` has no revision `{revision}`; write a branch, tag or full commit \
         hash that its page lists"
    )]
    NoRevision { wanted: String, revision: String },
    /// The revision is there, the weights are not.
    #[error(
        "the repository of `{wanted}` has no file `model.safetensors` or `pytorch_model.bin` at revision \
         `{revision}`; choose a repository or a revision with weights in such a file"
    )]
    NoWeights { wanted: String, revision: String },
    /// A file of a data set that went away while it was being fetched.
    #[error(
        "the repository of `{wanted}` lists `{file}` at revision `{revision}` and does not have it; try \
         again, or name a commit in place of a branch"
    )]
    NoData { wanted: String, file: String, revision: String },
    /// A cached file that is not what the hub promised.
    #[error(
        "the cached copy of `{wanted}` is damaged: `{file}` has the SHA-256 {found}, expected \
         {promised}; delete the folder `{folder}` and fetch again"
    )]
    Damaged { wanted: String, file: PathBuf, folder: PathBuf, promised: String, found: String },
    /// The cache cannot be written.
    #[error(
        "cannot keep `{wanted}` in the cache `{cache}`: {reason}; free some space, or point HF_HOME or \
         HF_HUB_CACHE at a folder that can be written"
    )]
    Cache { wanted: String, cache: PathBuf, reason: String },
    /// The HTTP client cannot be set up.
    #[error(
        "cannot look for `{wanted}`: {reason}; check HF_ENDPOINT, which must be the http(s) address of a \
         hub if it is set, and that this system has CA certificates"
    )]
    Client { wanted: String, reason: String },
    /// The address that was asked does not behave like a hub.
    #[error(
        "cannot ask {endpoint} for `{wanted}`: {reason}; check HF_ENDPOINT, which must be the http(s) \
         address of a hub if it is set"
    )]
    Endpoint { wanted: String, endpoint: String, reason: String },
    /// The hub was reached and then failed: a connection that broke, a server in trouble.
    #[error("the transfer of `{wanted}` from {endpoint} failed: {reason}; try again")]
    Transfer { wanted: String, endpoint: String, reason: String },
}

impl HubError {
    /// Whether the user can mend it. Only a transfer that broke off is nobody's fault here.
    pub fn is_user_error(&self) -> bool {
        !matches!(self, Self::Transfer { .. })
    }
}
