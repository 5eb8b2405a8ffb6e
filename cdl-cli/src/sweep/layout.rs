//! Files of a sweep's folder.

use std::{
    fs::{self, File},
    io::ErrorKind,
    path::{Path, PathBuf},
};

use cdl_core::{config::Config, system::lock};

use crate::{
    config_args::load_recorded,
    failure::{BUSY, Failure, first_line, io},
};

/// File of the plan. A folder that contains it is a sweep.
pub const FILE: &str = "sweep.toml";

/// True if a folder is a sweep.
pub fn is_sweep(folder: &Path) -> bool {
    folder.join(FILE).exists()
}

/// Configuration file of a cell, written when the sweep was started.
pub fn config_file(folder: &Path, cell: &str) -> PathBuf {
    folder.join("configs").join(format!("{cell}.toml"))
}

/// Run directory of a cell.
pub fn run_folder(folder: &Path, cell: &str) -> PathBuf {
    folder.join("cells").join(cell)
}

/// File `logs/CELL.KIND` about a cell's processes. The kind `txt` contains their output, `failure` the last error;
/// `lock` is locked by the process that runs the cell.
pub fn process_file(folder: &Path, cell: &str, kind: &str) -> PathBuf {
    folder.join("logs").join(format!("{cell}.{kind}"))
}

/// Locks a cell while the returned file is open. Only one process runs a cell, whether a sweep, a job array or a user
/// started it.
pub fn lock_cell(folder: &Path, cell: &str) -> Result<File, Failure> {
    let (path, root) = (process_file(folder, cell, "lock"), run_folder(folder, cell));
    fs::create_dir_all(folder.join("logs")).map_err(io(&path))?;
    let busy = |holder: String| Failure {
        message: format!("{cell} is run by {holder}; nothing was changed"),
        code: BUSY,
    };
    let lock = lock::lock_file(&path)?.map_err(|holder| busy(holder.to_string()))?;
    match lock::is_held(&root) {
        true => Err(busy(format!("a process that writes to {}", root.display()))),
        false => Ok(lock),
    }
}

/// True if a process runs the cell.
pub fn is_cell_locked(folder: &Path, cell: &str) -> bool {
    let lock = process_file(folder, cell, "lock");
    lock::holder(&lock).is_some() || lock::is_held(&run_folder(folder, cell))
}

/// Reads a configuration recorded by the sweep or one of its runs, without loading plugins. Errors have one line.
pub fn read_recorded(file: &Path) -> Result<Config, String> {
    let text = cdl_core::system::files::read_to_string(file).map_err(|e| match e.kind() {
        ErrorKind::NotFound => format!("{} is missing", file.display()),
        _ => format!("{}: {e}", file.display()),
    })?;
    Config::recorded_without_plugins(file, &text).map_err(|error| first_line(&error))
}

/// Reads the recorded configuration of a cell without loading plugins.
pub fn read_config(folder: &Path, cell: &str) -> Result<Config, String> {
    let again = "repeat the original `cdl sweep` command to restore it";
    read_recorded(&config_file(folder, cell)).map_err(|reason| format!("{reason}; {again}"))
}

/// Reads the recorded configuration of a cell after loading the plugins that it names.
pub fn load_config(folder: &Path, cell: &str) -> Result<Config, Failure> {
    read_config(folder, cell).map_err(Failure::invalid)?;
    load_recorded(&config_file(folder, cell))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exclusive_locks_mark_a_cell_as_running() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let (folder, cell) = (folder.path(), "seed-1");
        assert!(!is_cell_locked(folder, cell), "no lock file yet");
        let held = lock_cell(folder, cell).map_err(|e| e.message).expect("free");
        assert!(is_cell_locked(folder, cell));
        let refused = lock_cell(folder, cell).expect_err("locked");
        assert_eq!(refused.code, BUSY, "{}", refused.message);
        drop(held);
        let reader = File::open(process_file(folder, cell, "lock")).expect("the lock's file");
        reader.lock_shared().expect("locked");
        assert!(!is_cell_locked(folder, cell));
    }
}
