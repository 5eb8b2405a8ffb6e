//! One cell, in a process of its own: begun, gone on with, or found finished.

use std::{
    io::Read,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use cdl_core::run_dir::is_held;
use signal_hook::{consts::SIGTERM, low_level::raise};

use super::plan::{Plan, read_config, run_folder};
use crate::{Failure, logging::Log, resume, run};

/// Runs the cell `number`, counted from 0, of the sweep in `folder`.
pub fn run_cell(folder: &Path, number: usize, leash: bool, log: &Log, quiet: bool) -> Result<(), Failure> {
    let start = Instant::now();
    if leash {
        hold();
    }
    let cells = Plan::read(folder)?.cells();
    let Some(cell) = cells.get(number) else {
        let last = cells.len().saturating_sub(1);
        return Err(Failure::mistake(format!("--cell {number}: the sweep has the cells 0 to {last}")));
    };
    let config = read_config(folder, &cell.name)?;
    let root = run_folder(folder, &cell.name);
    // A process whose sweep was killed saves its run and ends soon.
    if is_held(&root) {
        tracing::warn!("another process is writing to {}: waiting for its end", root.display());
        while is_held(&root) {
            thread::sleep(Duration::from_millis(50));
        }
    }
    match root.join("run.json").exists() {
        true => resume::go_on(&root, &config, start, log, quiet),
        false => run::begin(&root, &config, false, start, log, quiet),
    }
}

/// Lets the process stop when its standard input ends, as if SIGTERM had come: a child is not left behind whatever
/// becomes of the sweep that has started it.
fn hold() {
    thread::spawn(|| {
        let mut input = std::io::stdin().lock();
        let mut bytes = [0; 64];
        while input.read(&mut bytes).is_ok_and(|read| read > 0) {}
        let _ = raise(SIGTERM);
    });
}
