//! Errors of a run. A message states file, key, value, the accepted values and the nearest valid name, so that the user
//! can fix the error.

mod hub;

use std::path::PathBuf;

pub use self::hub::{HubError, SourceError};

/// Result of the fallible functions of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Error of a run. [`Error::is_user_error`] distinguishes errors that the user can fix from failures during the work.
///
/// `kind` is the kind of plugin (`learner`, `distiller`, ...), `origin` the file, environment variable, option or
/// section that set a value, `key` its dotted path, `nearest` the most similar valid name, `known` all valid names in
/// order, `owner` the plugin or file to which tensors belong, and `reason` a description of the error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "fields of one name have one meaning, explained above")]
pub enum Error {
    /// A name that is not registered for this kind of plugin.
    #[error("unknown {kind} `{name}`{}; registered: {}", suggest(.nearest), list(.known))]
    UnknownName { kind: &'static str, name: String, nearest: Option<String>, known: Vec<String> },
    /// Two plugins of one kind with the same name, and their origins.
    #[error("two {kind} plugins have the name `{name}`: one from {first}, one from {second}")]
    DuplicateName { kind: &'static str, name: String, first: String, second: String },
    /// Two methods that cannot be combined in a run.
    #[error("`{first}` and `{second}` cannot be combined: {reason}")]
    Incompatible { first: String, second: String, reason: String },
    /// An unknown configuration key.
    #[error("{origin}: unknown key `{key}`{}; valid keys here: {}", suggest(.nearest), list(.known))]
    UnknownKey { origin: String, key: String, nearest: Option<String>, known: Vec<String> },
    /// A configuration value of the wrong type or out of range.
    #[error("{origin}: `{key} = {value}` is not valid: {expected}")]
    Setting { origin: String, key: String, value: String, expected: String },
    /// A configuration file that cannot be read or parsed, or an incomplete configuration.
    #[error("{origin}: {reason}")]
    Config { origin: String, reason: String },
    /// A text that is not a source of weights or data.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Weights or data that cannot be fetched.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// Weights that were found but do not fit.
    #[error("weights {file}: {reason}")]
    Weights { file: String, reason: String },
    /// Images or labels that cannot be used.
    #[error("{file}: {reason}")]
    Data { file: PathBuf, reason: String },
    /// Tasks, classes or batches of the configuration that do not fit the data.
    #[error("{0}")]
    Tasks(String),
    /// A run directory that cannot be created, written or read.
    #[error("run directory {dir}: {reason}")]
    RunDir { dir: PathBuf, reason: String },
    /// An exported model, its folder or a file in it, that cannot be written or read.
    #[error("exported model {file}: {reason}")]
    Export { file: PathBuf, reason: String },
    /// A loss term or parameter that is not finite. Task, epoch and step are counted from 1.
    #[error(
        "{what} became {value} in task {task}, {phase} phase, epoch {epoch}, step {step}; \
         finished tasks are kept. A lower `optimizer.lr` often helps"
    )]
    NotFinite { what: String, value: f64, task: usize, phase: &'static str, epoch: usize, step: usize },
    /// The run was stopped between two steps, as requested.
    #[error("stopped")]
    Stopped,
    /// A checkpoint or model file without the tensors that a plugin expects.
    #[error("state of {owner}: {reason}")]
    State { owner: String, reason: String },
    /// A plugin that violates the contract of its trait. `promise` is the requirement.
    #[error("{plugin} violates its contract: {promise}")]
    ContractViolation { plugin: String, promise: String },
    /// A library that is not a plugin of this program, with the reason and the remedy.
    #[error("plugin {file}: {reason}")]
    Plugin { file: PathBuf, reason: String },
    /// A panic in a trait method of a plugin.
    #[error("{kind} `{plugin}` panicked in `{method}`: {message}")]
    Panicked { kind: &'static str, plugin: String, method: &'static str, message: String },
    /// A tensor that does not fit into memory. Sizes are in bytes.
    #[error(
        "a tensor of shape {shape:?} needs {:.1} GB of memory, {:.1} GB are free",
        *needed as f64 / 1e9,
        *free as f64 / 1e9
    )]
    Memory { shape: Vec<usize>, needed: u64, free: u64 },
    /// A device that does not exist or cannot be used.
    #[error("device `{device}`: {reason}")]
    Device { device: String, reason: String },
    /// Error of a tensor operation.
    #[error("tensor operation: {0}")]
    Tensor(#[from] candle_core::Error),
    /// Error of reading or writing a file.
    #[error("{file}: {source}")]
    Io { file: PathBuf, source: std::io::Error },
}

impl Error {
    /// Returns the error of an invalid value of a plugin's setting. `key` is the plugin's own key; the configuration
    /// adds section and origin ([`Config::locate`](crate::config::Config::locate)).
    pub fn setting(key: &str, value: impl std::fmt::Display, expected: impl Into<String>) -> Self {
        Self::Setting {
            origin: "configuration".into(),
            key: key.into(),
            value: value.to_string(),
            expected: expected.into(),
        }
    }

    /// Returns the error of a file or folder of images or labels.
    pub fn data(file: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::Data { file: file.into(), reason: reason.into() }
    }

    /// Returns the configuration key of the error.
    pub(crate) fn key(&self) -> Option<&str> {
        match self {
            Self::Setting { key, .. } | Self::UnknownKey { key, .. } => Some(key),
            _ => None,
        }
    }

    /// Returns whether the user can fix the error by changing the command, a file or the configuration (exit code 2).
    /// Other errors are failures during the work (exit code 1).
    pub fn is_user_error(&self) -> bool {
        match self {
            Self::Hub(error) => error.is_user_error(),
            Self::NotFinite { .. } | Self::Stopped | Self::Tensor(_) | Self::Io { .. } => false,
            _ => true,
        }
    }
}

/// Converts an I/O error to an [`Error::Io`] with the path of the file.
pub(crate) fn io(file: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
    let file = file.into();
    move |source| Error::Io { file, source }
}

/// Converts the error of a missing file or folder to `None`.
pub(crate) fn if_there<T>(result: std::io::Result<T>) -> std::io::Result<Option<T>> {
    match result {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

/// Returns the name in `known` most similar to `name`, if the similarity is high enough for a suggestion.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    known
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(similarity, _)| *similarity > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate.to_string())
}

/// Returns the end of a message that suggests a name.
pub(crate) fn suggest(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!(" (did you mean `{name}`?)")).unwrap_or_default()
}

/// Replaces the names of Rust types in a message of serde by words.
pub(crate) fn types_in_words(message: &str) -> String {
    let unsigned = ["usize", "u8", "u16", "u32", "u64"].map(|name| (name, "a whole number, 0 or more"));
    let signed = ["i8", "i16", "i32", "i64"].map(|name| (name, "a whole number"));
    let types = unsigned.into_iter().chain(signed).chain([("f32", "a number"), ("f64", "a number")]);
    types.fold(message.to_string(), |message, (name, words)| {
        let message = message.replace(&format!("expected {name} "), &format!("expected {words} "));
        match message.strip_suffix(&format!("expected {name}")) {
            Some(start) => format!("{start}expected {words}"),
            None => message,
        }
    })
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::{nearest, types_in_words};

    #[test]
    fn messages_of_serde_describe_types_in_words() {
        let plain = types_in_words("invalid type: string \"five\", expected usize");
        assert_eq!(plain, "invalid type: string \"five\", expected a whole number, 0 or more");
        let within = types_in_words("invalid value: integer `-1`, expected u64 at line 1 column 2");
        assert_eq!(
            within,
            "invalid value: integer `-1`, expected a whole number, 0 or more at line 1 column 2"
        );
    }

    #[test]
    fn nearest_name_is_suggested_only_when_similar() {
        let known = ["long_name", "other_name", "abc"];
        assert_eq!(nearest("long_nam", known).as_deref(), Some("long_name"));
        assert_eq!(nearest("longname", known).as_deref(), Some("long_name"));
        assert_eq!(nearest("xyz", known), None);
    }
}
