//! Loading plugins before a command runs.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use cdl_core::{
    config::ConfigLayers,
    error::Error,
    registry::{Entry, dynamic},
};

use crate::failure::Failure;

/// Environment variable with the folders of plugins, separated as in `PATH`.
pub const PLUGIN_PATH: &str = "CDL_PLUGIN_PATH";
/// Seconds that a library may take to load.
const TIMEOUT: u64 = 60;
/// Output of a process that has loaded a library successfully.
pub const LOADED: &str = "loaded\n";
/// True if this program shares `cdl-core` with plugins and can load them.
static ENABLED: AtomicBool = AtomicBool::new(false);

/// Enables plugins. The program must link `cdl-core` as a shared library.
pub fn enable() {
    ENABLED.store(true, Ordering::Relaxed);
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

/// Loads plugins, each given with the origin of its path.
pub fn load_each(named: Vec<(PathBuf, String)>) -> Result<(), Failure> {
    for (file, origin) in named {
        load(&file)
            .map_err(|failure| Failure { message: format!("{origin}: {}", failure.message), ..failure })?;
    }
    Ok(())
}

/// Loads a plugin after another process has loaded it successfully.
pub fn load(file: &Path) -> Result<dynamic::Loaded, Failure> {
    let fail = |reason: String| Failure::from(Error::Plugin { file: file.into(), reason });
    if !ENABLED.load(Ordering::Relaxed) {
        let other = "`cdl dist DIR` builds DIR/bin/cdl, which can";
        return Err(fail(format!("this `cdl` is linked statically and cannot load plugins; {other}")));
    }
    dynamic::inspect(file)?;
    let place = file.canonicalize().ok();
    if !dynamic::loaded().iter().any(|loaded| Some(&loaded.file) == place.as_ref()) {
        probe(file).map_err(fail)?;
    }
    Ok(dynamic::load(file)?)
}

/// Loads the library in another process, so that its initialisers cannot end this process.
fn probe(file: &Path) -> Result<(), String> {
    let program = std::env::current_exe().map_err(|e| format!("the path of this program is unknown: {e}"))?;
    let mut command = Command::new(program);
    command.args(["--quiet", "plugin", "probe"]).arg(file).env_remove(PLUGIN_PATH);
    let failed = |e: std::io::Error| format!("cannot be tested: {e}");
    let start = Instant::now();
    // The pipes are read after the process has ended: the output fits into their buffers.
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(failed)?;
    while child.try_wait().map_err(failed)?.is_none() {
        if start.elapsed() > Duration::from_secs(TIMEOUT) {
            child.kill().map_err(failed)?;
            return Err(format!("was not loaded within {TIMEOUT} s: an initialiser does not return"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().map_err(failed)?;
    let loaded = output.status.success() && output.stdout == LOADED.as_bytes();
    // Exit code 2 means an error that this process will find and report itself.
    if loaded || output.status.code() == Some(2) {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let message = stderr.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no message");
    Err(format!("ends the program when it is loaded ({}): {message}", output.status))
}

/// Libraries in the folders of `CDL_PLUGIN_PATH`, by folder and name.
pub fn searched() -> Result<Vec<PathBuf>, Failure> {
    let Some(folders) = std::env::var_os(PLUGIN_PATH) else { return Ok(Vec::new()) };
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
