//! Every way a run can fail, with enough in each message to mend it: the file, the key, the value, what was
//! expected, and the nearest valid name.

mod hub;
mod plugin;

use std::path::PathBuf;

pub use self::{
    hub::{HubError, SourceError},
    plugin::PluginError,
};

/// Result of everything fallible in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure, either the user's to mend ([`Error::is_user_error`]) or met while working.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name that no registered plugin of this kind has.
    #[error("unknown {kind} `{name}`{}; registered: {}", suggest(.nearest), list(.known))]
    UnknownName {
        /// What was looked up: "learner", "distiller", ...
        kind: &'static str,
        /// The name as written.
        name: String,
        /// The most similar registered name, if one is similar.
        nearest: Option<String>,
        /// All registered names, sorted.
        known: Vec<String>,
    },
    /// Two plugins of one kind claim the same name.
    #[error("two {kind} plugins are called `{name}`: one from {first}, one from {second}")]
    DuplicateName {
        /// Kind of the plugins.
        kind: &'static str,
        /// The name both claim.
        name: String,
        /// Where the first was registered.
        first: String,
        /// Where the second was registered.
        second: String,
    },
    /// Two methods that do not work in one run.
    #[error("`{first}` and `{second}` cannot go together: {reason}")]
    Incompatible {
        /// Name of one.
        first: String,
        /// Name of the other.
        second: String,
        /// Why.
        reason: String,
    },
    /// A configuration key that nothing reads.
    #[error("{origin}: unknown key `{key}`{}; valid keys here: {}", suggest(.nearest), list(.known))]
    UnknownKey {
        /// File, environment variable or option that set it.
        origin: String,
        /// Dotted path of the key.
        key: String,
        /// The most similar valid key, if one is similar.
        nearest: Option<String>,
        /// All keys that are valid at this place.
        known: Vec<String>,
    },
    /// A configuration value of the wrong type or out of range.
    #[error("{origin}: `{key} = {value}` is not valid: {expected}")]
    Setting {
        /// File, environment variable or option that set it, or the section it belongs to.
        origin: String,
        /// Dotted path of the key.
        key: String,
        /// The value as given.
        value: String,
        /// What was expected.
        expected: String,
    },
    /// A configuration file that cannot be read or parsed, or an incomplete configuration.
    #[error("{origin}: {reason}")]
    Config {
        /// File or option.
        origin: String,
        /// What is wrong.
        reason: String,
    },
    /// A source of weights that cannot be read.
    #[error(transparent)]
    Source(#[from] crate::error::SourceError),
    /// Weights that cannot be fetched.
    #[error(transparent)]
    Hub(#[from] crate::error::HubError),
    /// Weights that were found but do not fit.
    #[error("weights {file}: {reason}")]
    Weights {
        /// File or source of the weights.
        file: String,
        /// What is wrong with them.
        reason: String,
    },
    /// Images or labels that cannot be used.
    #[error("{}: {reason}", .file.display())]
    Data {
        /// The file or folder.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The tasks, classes or batches that the configuration asks for cannot be made from the data.
    #[error("{0}")]
    Tasks(String),
    /// A run directory that cannot be created, written or read.
    #[error("run directory {}: {reason}", .dir.display())]
    RunDir {
        /// The directory.
        dir: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// An exported model that cannot be written or read.
    #[error("exported model {}: {reason}", .file.display())]
    Export {
        /// Its folder, or a file in it.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A loss or a parameter stopped being a finite number.
    #[error(
        "{what} became {value} in task {task}, {phase} phase, epoch {epoch}, step {step}; \
         finished tasks are kept. A lower `optimizer.lr` often helps"
    )]
    NotFinite {
        /// The loss term or parameter.
        what: String,
        /// NaN or an infinity.
        value: f64,
        /// Task, counted from 1.
        task: usize,
        /// "teacher" or "student".
        phase: &'static str,
        /// Epoch, counted from 1.
        epoch: usize,
        /// Step within the epoch, counted from 1.
        step: usize,
    },
    /// The run was asked to stop, and did between two steps.
    #[error("stopped")]
    Stopped,
    /// A checkpoint or model file whose tensors are not those that a plugin expects.
    #[error("state of {owner}: {reason}")]
    State {
        /// Plugin or file.
        owner: String,
        /// What is missing or of the wrong shape.
        reason: String,
    },
    /// A plugin does not keep what its kind promises.
    #[error("{plugin} breaks a promise: {promise}")]
    Promise {
        /// The plugin, or what it returned.
        plugin: String,
        /// What should be so, and what was found.
        promise: String,
    },
    /// A library that is no plugin for this program.
    #[error(transparent)]
    Plugin(#[from] crate::error::PluginError),
    /// A plugin's code panicked.
    #[error("{kind} `{plugin}` panicked in `{method}`: {message}")]
    Panicked {
        /// Kind of the plugin.
        kind: &'static str,
        /// Its name.
        plugin: String,
        /// The method of its trait.
        method: &'static str,
        /// What the panic said.
        message: String,
    },
    /// A tensor for which there is no memory.
    #[error(
        "a tensor of shape {shape:?} would take {:.1} GB of memory, {:.1} GB are free",
        *needed as f64 / 1e9,
        *free as f64 / 1e9
    )]
    Memory {
        /// The tensor's shape.
        shape: Vec<usize>,
        /// Bytes of the tensor.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The device asked for is not there.
    #[error("device `{device}`: {reason}")]
    Device {
        /// As written in the configuration.
        device: String,
        /// Why it cannot be used.
        reason: String,
    },
    /// A tensor operation failed.
    #[error("tensor operation: {0}")]
    Tensor(#[from] candle_core::Error),
    /// Reading or writing a file failed.
    #[error("{}: {source}", .file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The operating system's word.
        source: std::io::Error,
    },
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

/// The name in `known` most like `name`, if the two are alike enough to be worth proposing.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    known
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(similarity, _)| *similarity > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate.to_string())
}

fn suggest(nearest: &Option<String>) -> String {
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
