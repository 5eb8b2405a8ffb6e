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

/// Folders in which plugins are looked for, as in `PATH`.
pub const SEARCH: &str = "CDL_PLUGIN_PATH";
/// Seconds that a library may take to load.
const PATIENCE: u64 = 60;
/// Output of a process that has loaded a library and survived it.
pub const LOADED: &str = "loaded\n";
/// Whether this program shares `cdl-core` with plugins.
static SHARED: AtomicBool = AtomicBool::new(false);

/// Says that this program shares `cdl-core` with plugins.
pub fn share() {
    SHARED.store(true, Ordering::Relaxed);
}

/// Loads the plugins in the folders of `CDL_PLUGIN_PATH`, then `files`. Of what merely lies in a folder, a library that
/// cannot be loaded is left out with a warning: most commands do not need it.
pub fn load_all(files: &[PathBuf]) -> Result<(), Failure> {
    for file in searched()? {
        if let Err(failure) = load(&file) {
            tracing::warn!("{SEARCH}: left out: {}", failure.message);
        }
    }
    files.iter().try_for_each(|file| load(file).map(|_| ()))
}

/// Loads the plugins that a configuration names.
pub fn load_named(layers: &ConfigLayers) -> Result<(), Failure> {
    load_each(layers.plugins().map_err(Failure::before_writing)?)
}

/// Loads plugins, each with where it is named.
pub fn load_each(named: Vec<(PathBuf, String)>) -> Result<(), Failure> {
    for (file, origin) in named {
        load(&file)
            .map_err(|failure| Failure { message: format!("{origin}: {}", failure.message), ..failure })?;
    }
    Ok(())
}

/// Loads one plugin, after another process has shown that it can be loaded at all.
pub fn load(file: &Path) -> Result<dynamic::Loaded, Failure> {
    let fail = |reason: String| Failure::from(Error::Plugin { file: file.into(), reason });
    if !SHARED.load(Ordering::Relaxed) {
        let other = "`cdl dist DIR` makes one that does, DIR/bin/cdl";
        return Err(fail(format!("this `cdl` is linked as a whole and loads no plugins; {other}")));
    }
    dynamic::inspect(file)?;
    let place = file.canonicalize().ok();
    if !dynamic::loaded().iter().any(|loaded| Some(&loaded.file) == place.as_ref()) {
        probe(file).map_err(fail)?;
    }
    Ok(dynamic::load(file)?)
}

/// Loads the library in a process of its own: what its initialisers do can end that one and not this.
fn probe(file: &Path) -> Result<(), String> {
    let program = std::env::current_exe().map_err(|e| format!("this program cannot find itself: {e}"))?;
    let mut command = Command::new(program);
    command.args(["--quiet", "plugin", "probe"]).arg(file).env_remove(SEARCH);
    let failed = |e: std::io::Error| format!("cannot be tried out: {e}");
    let start = Instant::now();
    // Its words fit into a pipe.
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(failed)?;
    while child.try_wait().map_err(failed)?.is_none() {
        if start.elapsed() > Duration::from_secs(PATIENCE) {
            child.kill().map_err(failed)?;
            return Err(format!("was not loaded within {PATIENCE} s: something in it waits or never ends"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().map_err(failed)?;
    let loaded = output.status.success() && output.stdout == LOADED.as_bytes();
    // Code 2: what is wrong beyond that, this process will find and say itself.
    if loaded || output.status.code() == Some(2) {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("nothing was said");
    Err(format!("ends the program when it is loaded ({}): {said}", output.status))
}

/// The libraries in the folders of `CDL_PLUGIN_PATH`, by folder and name.
pub fn searched() -> Result<Vec<PathBuf>, Failure> {
    let Some(folders) = std::env::var_os(SEARCH) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for folder in std::env::split_paths(&folders).filter(|folder| !folder.as_os_str().is_empty()) {
        let unreadable =
            |e| Failure::invalid(format!("{SEARCH}: the folder {} cannot be read: {e}", folder.display()));
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

/// Library that an entry was loaded from, in words, for `cdl list` and `cdl describe`.
pub fn origin(entry: &Entry) -> Option<String> {
    dynamic::origin_of(entry).map(|file| format!("loaded from {}", file.display()))
}
