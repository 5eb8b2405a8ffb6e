//! Loading plugins before a command runs.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use cdl_core::{
    config::ConfigLayers,
    error::Error,
    registry::{Entry, dynamic},
};

use crate::{failure::Failure, plugin::probe::probe};

/// Environment variable with the folders of plugins, separated as in `PATH`.
pub const PLUGIN_PATH: &str = "CDL_PLUGIN_PATH";
/// Option that loads no plugin.
pub const NO_PLUGINS: &str = "--no-plugins";
/// True if this program shares `cdl-core` with plugins and can load them.
static ENABLED: AtomicBool = AtomicBool::new(false);
/// True if the user has refused all plugins.
static REFUSED: AtomicBool = AtomicBool::new(false);

/// Enables plugins. The program must link `cdl-core` as a shared library.
pub fn enable() {
    ENABLED.store(true, Ordering::Relaxed);
}

/// Refuses all plugins, as [`NO_PLUGINS`] requests.
pub fn refuse() {
    REFUSED.store(true, Ordering::Relaxed);
}

/// True if all plugins are refused.
pub fn refused() -> bool {
    REFUSED.load(Ordering::Relaxed)
}

/// Loads the plugins in the folders of `CDL_PLUGIN_PATH`, then `files`. A library of `CDL_PLUGIN_PATH` that cannot be
/// loaded causes only a warning, since most commands do not need it.
pub fn load_all(files: &[PathBuf]) -> Result<(), Failure> {
    for file in searched()? {
        if let Err(failure) = load(&file) {
            tracing::warn!("{PLUGIN_PATH}: skipped: {}", failure.message);
        }
    }
    files.iter().try_for_each(|file| load(file).map(|_| ()))
}

/// Loads the plugins that a configuration names.
pub fn load_named(layers: &ConfigLayers) -> Result<(), Failure> {
    load_each(layers.plugins().map_err(Failure::before_writing)?)
}

/// Loads plugins, each given with the origin of its path. Loads none if plugins are refused: the configuration may not
/// need them, and an error about a method that is not registered names them.
pub fn load_each(named: Vec<(PathBuf, String)>) -> Result<(), Failure> {
    for (file, origin) in named.into_iter().filter(|_| !refused()) {
        load(&file)
            .map_err(|failure| Failure { message: format!("{origin}: {}", failure.message), ..failure })?;
    }
    Ok(())
}

/// Loads a plugin after another process has loaded it successfully.
pub fn load(file: &Path) -> Result<dynamic::Loaded, Failure> {
    let fail = |reason: String| Failure::from(Error::Plugin { file: file.into(), reason });
    if refused() {
        return Err(fail(format!("is not loaded because of {NO_PLUGINS}")));
    }
    if !ENABLED.load(Ordering::Relaxed) {
        let other = "`cdl dist DIR` builds DIR/bin/cdl, which can";
        return Err(fail(format!("this `cdl` is linked statically and cannot load plugins; {other}")));
    }
    let place = file.canonicalize().ok();
    if let Some(known) = dynamic::loaded().into_iter().find(|loaded| Some(&loaded.file) == place.as_ref()) {
        return Ok(known);
    }
    let library = dynamic::inspect(file)?;
    probe(file, library.sha256()).map_err(fail)?;
    Ok(library.load()?)
}

/// Libraries in the folders of `CDL_PLUGIN_PATH`, by folder and name. None if plugins are refused.
pub fn searched() -> Result<Vec<PathBuf>, Failure> {
    let Some(folders) = std::env::var_os(PLUGIN_PATH).filter(|_| !refused()) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for folder in std::env::split_paths(&folders).filter(|folder| !folder.as_os_str().is_empty()) {
        let unreadable = |e| {
            Failure::invalid(format!("{PLUGIN_PATH}: the folder {} cannot be read: {e}", folder.display()))
        };
        let entries = std::fs::read_dir(&folder).map_err(unreadable)?;
        let libraries = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.is_file() && path.to_string_lossy().ends_with(std::env::consts::DLL_SUFFIX));
        let from = found.len();
        found.extend(libraries);
        found[from..].sort();
    }
    Ok(found)
}

/// Describes the library that an entry was loaded from; `None` for built-in entries.
pub fn origin(entry: &Entry) -> Option<String> {
    dynamic::origin_of(entry).map(|file| format!("loaded from {}", file.display()))
}
