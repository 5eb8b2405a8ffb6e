//! Libraries that are no plugins for this program.

/// Why a library was not loaded.
#[derive(Debug, thiserror::Error)]
#[error("plugin {file}: {reason}")]
pub struct PluginError {
    /// The library.
    pub file: std::path::PathBuf,
    /// What is wrong with it, and what to do.
    pub reason: String,
}
