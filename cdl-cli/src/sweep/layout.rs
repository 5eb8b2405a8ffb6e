//! Files of a sweep's folder.

use std::{
    fs::{self, File},
    io::ErrorKind,
    path::{Path, PathBuf},
};

use cdl_core::{config::Config, run::directory};

use crate::{
    config_args::load_recorded,
    failure::{BUSY, Failure, first_line, io},
};

/// The plan's file; a folder that has it is a sweep's.
pub const FILE: &str = "sweep.toml";

/// True if a folder is a sweep's.
pub fn is_sweep(folder: &Path) -> bool {
    folder.join(FILE).exists()
}

/// Configuration of a cell, as it was when the sweep was begun.
pub fn config_file(folder: &Path, cell: &str) -> PathBuf {
    folder.join("configs").join(format!("{cell}.toml"))
}

/// Run directory of a cell.
pub fn run_folder(folder: &Path, cell: &str) -> PathBuf {
    folder.join("cells").join(cell)
}

/// File about a cell's processes: `txt` is their output, `failure` why the last one failed, `lock` the lock of the one that
/// runs the cell.
pub fn process_file(folder: &Path, cell: &str, kind: &str) -> PathBuf {
    folder.join("logs").join(format!("{cell}.{kind}"))
}

/// Takes a cell for as long as the file is open: one process at a time, whether a sweep, a job array or a user started it.
pub fn lock_cell(folder: &Path, cell: &str) -> Result<File, Failure> {
    let (path, root) = (process_file(folder, cell, "lock"), run_folder(folder, cell));
    fs::create_dir_all(folder.join("logs")).map_err(io(&path))?;
    let busy = |holder: String| Failure {
        message: format!("{cell} is run by {holder}; nothing of it was changed"),
        code: BUSY,
    };
    let lock = directory::lock_file(&path)?.map_err(|holder| busy(holder.to_string()))?;
    match directory::is_held(&root) {
        true => Err(busy(format!("a process that writes to {}", root.display()))),
        false => Ok(lock),
    }
}

/// True if another process runs the cell.
pub fn is_cell_held(folder: &Path, cell: &str) -> bool {
    let lock = process_file(folder, cell, "lock");
    directory::holder(&lock).is_some() || directory::is_held(&run_folder(folder, cell))
}

/// Reads a configuration that the sweep or a run of it has recorded, to be looked at: no plugin is loaded for it. An error
/// is told in one line.
pub fn read_recorded(file: &Path) -> Result<Config, String> {
    let text = cdl_core::system::files::read_to_string(file).map_err(|e| match e.kind() {
        ErrorKind::NotFound => format!("{} is missing", file.display()),
        _ => format!("{}: {e}", file.display()),
    })?;
    Config::recorded_without_plugins(file, &text).map_err(|error| first_line(&error))
}

/// Reads the recorded configuration of a cell, which has to have one.
pub fn look_at_config(folder: &Path, cell: &str) -> Result<Config, String> {
    let again = "give the whole command again, it writes what is missing";
    read_recorded(&config_file(folder, cell)).map_err(|reason| format!("{reason}; {again}"))
}

/// Loads the recorded configuration of a cell with the plugins that it names, to be run.
pub fn load_config(folder: &Path, cell: &str) -> Result<Config, Failure> {
    look_at_config(folder, cell).map_err(Failure::invalid)?;
    load_recorded(&config_file(folder, cell))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_looks_sees_one_that_runs_the_cell_and_no_others_that_look() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let (folder, cell) = (folder.path(), "seed-1");
        assert!(!is_cell_held(folder, cell), "nobody was ever there");
        let taken = lock_cell(folder, cell).map_err(|e| e.message).expect("free");
        assert!(is_cell_held(folder, cell));
        let refused = lock_cell(folder, cell).expect_err("taken");
        assert_eq!(refused.code, BUSY, "{}", refused.message);
        drop(taken);
        let looker = File::open(process_file(folder, cell, "lock")).expect("the lock's file");
        looker.lock_shared().expect("locked");
        assert!(!is_cell_held(folder, cell));
    }
}
