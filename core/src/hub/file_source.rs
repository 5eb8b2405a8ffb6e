//! Sources of weights and data sets, as written in a configuration.

use std::{fmt, path::PathBuf, str::FromStr};

use crate::error::SourceError;

/// Source of weights or of a data set: `hf:owner/name`, `hf:owner/name@revision`, or a local path. For weights the path
/// is a safetensors or PyTorch file, or a folder with `model.safetensors` or `pytorch_model.bin` and optionally
/// `config.json` and `preprocessor_config.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileSource {
    /// Repository on the hub.
    Hub {
        /// Owner and name, `owner/name`.
        repo: String,
        /// Branch, tag or commit; `None` for the branch `main`.
        revision: Option<String>,
    },
    /// Local file or folder.
    Path(PathBuf),
}

impl FromStr for FileSource {
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
        if let Some(part) = [owner, name].into_iter().find(|part| !is_repository_name(part)) {
            return refuse(format!("`{part}` cannot be an owner or a name on the hub"));
        }
        if let Some(revision) = revision.filter(|revision| !is_revision(revision)) {
            return refuse(format!("`{revision}` cannot be a branch, a tag or a commit"));
        }
        Ok(Self::Hub { repo: repo.to_owned(), revision: revision.map(str::to_owned) })
    }
}

impl fmt::Display for FileSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hub { repo, revision: Some(revision) } => write!(f, "hf:{repo}@{revision}"),
            Self::Hub { repo, revision: None } => write!(f, "hf:{repo}"),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

/// Returns whether `text` follows the hub's rules for owners and names. The rules also keep the folder that the cache
/// derives from the two (`models--owner--name`) unambiguous and inside the cache.
fn is_repository_name(text: &str) -> bool {
    let edge = |c| matches!(c, '-' | '.');
    !text.is_empty()
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        && !text.starts_with(edge)
        && !text.ends_with(edge)
        && !text.contains("--")
        && !text.contains("..")
}

/// Returns whether `text` follows git's rules for reference names, which commit hashes satisfy too. The cache creates a
/// file of this name for each revision, so a revision that leaves its folder must be rejected.
fn is_revision(text: &str) -> bool {
    text.split('/').all(|part| !part.is_empty() && !part.starts_with('.'))
        && !text.contains("..")
        && !text.contains(|c: char| {
            c.is_whitespace() || c.is_control() || matches!(c, '~' | '^' | ':' | '?' | '*' | '[' | '\\')
        })
}
