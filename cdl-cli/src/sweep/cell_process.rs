//! The process of one cell: begins its run, continues it, or finds it finished.

use std::{fs, path::Path, time::Instant};

use cdl_core::system::atomic::write_atomic;

use super::{
    layout::{load_config, lock_cell, process_file, run_folder},
    plan::Plan,
};
use crate::{
    failure::{Failure, first_line},
    lifecycle::{begin, go_on, is_begun},
    logging::Log,
};

/// Runs the cell that is called `which`, or has this number, counted from 0, of the sweep in `folder`.
pub fn run_cell(folder: &Path, which: &str, log: &Log) -> Result<(), Failure> {
    let start = Instant::now();
    let cells = Plan::read(folder)?.cells();
    let number = which.parse().ok().and_then(|number: usize| cells.get(number));
    let cell = number.or_else(|| cells.iter().find(|cell| cell.name == which)).ok_or_else(|| {
        let (first, last) = (cells.first().map_or("", |cell| &cell.name), cells.len().saturating_sub(1));
        Failure::invalid(format!("--cell {which}: the sweep has the cells 0 to {last}, called like {first}"))
    })?;
    let cell = &cell.name;
    let _lock = lock_cell(folder, cell)?;
    let _ = fs::remove_file(process_file(folder, cell, "failure"));
    let work = || -> Result<(), Failure> {
        let config = load_config(folder, cell)?;
        let root = run_folder(folder, cell);
        match is_begun(&root) {
            true => go_on(&root, &config, start, log),
            false => begin(&root, &config, false, start, log),
        }
    };
    // A plugin's panic is reported like an error.
    let done = cdl_core::registry::catch(|| Ok(work())).map_err(Failure::before_writing).flatten();
    if let Some(failure) = done.as_ref().err().filter(|failure| !failure.is_stop()) {
        note_failure(folder, cell, &failure.message);
    }
    done
}

/// Writes down why a cell's process failed: a process of a job array has no sweep that would see it end.
pub fn note_failure(folder: &Path, cell: &str, message: &str) {
    let line = message.lines().next().unwrap_or_default();
    if let Err(error) = write_atomic(&process_file(folder, cell, "failure"), format!("{line}\n").as_bytes()) {
        tracing::warn!("{cell}: its failure is not recorded: {}", first_line(&error));
    }
}

/// Reason for the failure of the cell's last process, if it failed.
pub fn noted_failure(folder: &Path, cell: &str) -> Option<String> {
    let text = fs::read_to_string(process_file(folder, cell, "failure")).ok()?;
    Some(text.trim_end().into())
}
