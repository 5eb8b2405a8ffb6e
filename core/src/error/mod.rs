//! Every way a run can fail, with enough in each message to mend it: the file, the key, the value, what was
//! expected, and the nearest valid name.

mod hub;

use std::path::PathBuf;

pub use self::hub::{HubError, SourceError};

/// Result of everything fallible in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure, either the user's to mend ([`Error::is_user_error`]) or met while working.
///
/// `kind` is the sort of plugin (`learner`, `distiller`, ...), `origin` the file, environment variable, option or section
/// that set a value, `key` its dotted path, `nearest` the most similar valid name, `known` all valid names in order, `owner`
/// the plugin or file that tensors belong to, and `reason` what is wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "fields of one name have one meaning, explained above")]
pub enum Error {
    /// A name that no registered plugin of this kind has.
    #[error("unknown {kind} `{name}`{}; registered: {}", suggest(.nearest), list(.known))]
    UnknownName { kind: &'static str, name: String, nearest: Option<String>, known: Vec<String> },
    /// Two plugins of one kind with one name, and where each was registered.
    #[error("two {kind} plugins are called `{name}`: one from {first}, one from {second}")]
    DuplicateName { kind: &'static str, name: String, first: String, second: String },
    /// Two methods that do not work in one run.
    #[error("`{first}` and `{second}` cannot go together: {reason}")]
    Incompatible { first: String, second: String, reason: String },
    /// A configuration key that nothing reads.
    #[error("{origin}: unknown key `{key}`{}; valid keys here: {}", suggest(.nearest), list(.known))]
    UnknownKey { origin: String, key: String, nearest: Option<String>, known: Vec<String> },
    /// A configuration value of the wrong type or out of range.
    #[error("{origin}: `{key} = {value}` is not valid: {expected}")]
    Setting { origin: String, key: String, value: String, expected: String },
    /// A configuration file that cannot be read or parsed, or an incomplete configuration.
    #[error("{origin}: {reason}")]
    Config { origin: String, reason: String },
    /// A source of weights that cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Weights that cannot be fetched.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// Weights that were found but do not fit.
    #[error("weights {file}: {reason}")]
    Weights { file: String, reason: String },
    /// Images or labels that cannot be used.
    #[error("{file}: {reason}")]
    Data { file: PathBuf, reason: String },
    /// The tasks, classes or batches that the configuration asks for cannot be made from the data.
    #[error("{0}")]
    Tasks(String),
    /// A run directory that cannot be created, written or read.
    #[error("run directory {dir}: {reason}")]
    RunDir { dir: PathBuf, reason: String },
    /// An exported model, its folder or a file in it, that cannot be written or read.
    #[error("exported model {file}: {reason}")]
    Export { file: PathBuf, reason: String },
    /// A loss term or parameter that stopped being a finite number. Task, epoch and step are counted from 1.
    #[error(
        "{what} became {value} in task {task}, {phase} phase, epoch {epoch}, step {step}; \
         finished tasks are kept. A lower `optimizer.lr` often helps"
    )]
    NotFinite { what: String, value: f64, task: usize, phase: &'static str, epoch: usize, step: usize },
    /// The run was asked to stop, and did between two steps.
    #[error("stopped")]
    Stopped,
    /// A checkpoint or model file whose tensors are not those that a plugin expects.
    #[error("state of {owner}: {reason}")]
    State { owner: String, reason: String },
    /// A plugin, or what it returned, that does not keep what its kind promises.
    #[error("{plugin} breaks a promise: {promise}")]
    Promise { plugin: String, promise: String },
    /// A library that is no plugin for this program: what is wrong with it, and what to do.
    #[error("plugin {file}: {reason}")]
    Plugin { file: PathBuf, reason: String },
    /// A panic in a method of a plugin's trait.
    #[error("{kind} `{plugin}` panicked in `{method}`: {message}")]
    Panicked { kind: &'static str, plugin: String, method: &'static str, message: String },
    /// A tensor for which there is no memory, in bytes.
    #[error(
        "a tensor of shape {shape:?} would take {:.1} GB of memory, {:.1} GB are free",
        *needed as f64 / 1e9,
        *free as f64 / 1e9
    )]
    Memory { shape: Vec<usize>, needed: u64, free: u64 },
    /// The device asked for is not there.
    #[error("device `{device}`: {reason}")]
    Device { device: String, reason: String },
    /// A tensor operation failed.
    #[error("tensor operation: {0}")]
    Tensor(#[from] candle_core::Error),
    /// Reading or writing a file failed.
    #[error("{file}: {source}")]
    Io { file: PathBuf, source: std::io::Error },
}

impl Error {
    /// A setting that is out of range, named by the plugin's own key; whoever holds the configuration adds where the
    /// value came from.
    pub fn setting(key: &str, value: impl std::fmt::Display, expected: impl Into<String>) -> Self {
        Self::Setting {
            origin: "configuration".into(),
            key: key.into(),
            value: value.to_string(),
            expected: expected.into(),
        }
    }

    /// A file or folder of images or labels that cannot be used.
    pub fn data(file: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::Data { file: file.into(), reason: reason.into() }
    }

    /// The configuration key that the error is about.
    pub(crate) fn key(&self) -> Option<&str> {
        match self {
            Self::Setting { key, .. } | Self::UnknownKey { key, .. } => Some(key),
            _ => None,
        }
    }

    /// Whether the user can mend this by changing what they typed or pointed to (exit code 2), as against a failure
    /// while working (exit code 1).
    pub fn is_user_error(&self) -> bool {
        match self {
            Self::Hub(error) => error.is_user_error(),
            Self::NotFinite { .. } | Self::Stopped | Self::Tensor(_) | Self::Io { .. } => false,
            _ => true,
        }
    }
}

/// Turns an I/O error into an [`Error::Io`] that names the file.
pub(crate) fn io(file: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
    let file = file.into();
    move |source| Error::Io { file, source }
}

/// Turns the error of a file or folder that does not exist into `None`.
pub(crate) fn if_there<T>(result: std::io::Result<T>) -> std::io::Result<Option<T>> {
    match result {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

/// The name in `known` most like `name`, if the two are alike enough to be worth proposing.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    known
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(similarity, _)| *similarity > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate.to_string())
}

/// The end of a message that proposes a name.
pub(crate) fn suggest(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!(" (did you mean `{name}`?)")).unwrap_or_default()
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn nearest_name_is_proposed_only_when_alike() {
        let known = ["long_name", "other_name", "abc"];
        assert_eq!(nearest("long_nam", known).as_deref(), Some("long_name"));
        assert_eq!(nearest("longname", known).as_deref(), Some("long_name"));
        assert_eq!(nearest("xyz", known), None);
    }
}
