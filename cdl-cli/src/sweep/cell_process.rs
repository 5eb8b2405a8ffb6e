//! Process of one cell: starts its run, continues it, or finds it finished.

use std::{fs, path::Path, time::Instant};

use cdl_core::system::{atomic::write_atomic, files};

use super::{
    layout::{load_config, lock_cell, process_file, run_folder},
    plan::Plan,
};
use crate::{
    failure::{Failure, first_line},
    lifecycle::{begin, continue_run, is_begun},
    logging::Log,
};

/// Runs the cell with this name or number (from 0) of the sweep in `folder`.
pub fn run_cell(folder: &Path, cell: &str, log: &Log) -> Result<(), Failure> {
    let start = Instant::now();
    let cells = Plan::read(folder)?.cells();
    let by_number = cell.parse().ok().and_then(|number: usize| cells.get(number));
    let found = by_number.or_else(|| cells.iter().find(|other| other.name == cell)).ok_or_else(|| {
        let (first, last) = (cells.first().map_or("", |cell| &cell.name), cells.len().saturating_sub(1));
        Failure::invalid(format!(
            "--cell {cell}: no such cell; expected a number from 0 to {last} or a name such as {first}"
        ))
    })?;
    let cell = &found.name;
    let _lock = lock_cell(folder, cell)?;
    let _ = fs::remove_file(process_file(folder, cell, "failure"));
    let run = || -> Result<(), Failure> {
        let config = load_config(folder, cell)?;
        let root = run_folder(folder, cell);
        match is_begun(&root) {
            true => continue_run(&root, &config, start, log),
            false => begin(Some(&root), &config, false, start, log),
        }
    };
    // A plugin's panic is reported like an error.
    let result = cdl_core::registry::catch(|| Ok(run())).map_err(Failure::before_writing).flatten();
    if let Some(failure) = result.as_ref().err().filter(|failure| !failure.is_stop()) {
        record_failure(folder, cell, &failure.message);
    }
    result
}

/// Records why a cell's process failed. Processes of a job array have no parent that could report it.
pub fn record_failure(folder: &Path, cell: &str, message: &str) {
    let line = message.lines().next().unwrap_or_default();
    if let Err(error) = write_atomic(&process_file(folder, cell, "failure"), format!("{line}\n").as_bytes()) {
        tracing::warn!("{cell}: the failure cannot be recorded: {}", first_line(&error));
    }
}

/// Reason why the cell's last process failed, if it did.
pub fn recorded_failure(folder: &Path, cell: &str) -> Option<String> {
    let text = files::read_to_string(&process_file(folder, cell, "failure")).ok()?;
    Some(text.trim_end().into())
}
