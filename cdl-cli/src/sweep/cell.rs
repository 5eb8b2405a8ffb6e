//! One cell, in a process of its own: begun, gone on with, or found finished.

use std::{io::Read, path::Path, thread, time::Instant};

use signal_hook::{consts::SIGTERM, low_level::raise};

use super::{
    claim, last_words,
    plan::{Cell, Plan, load_config, run_folder},
};
use crate::{Failure, logging::Log, resume, run};

/// Runs the cell that is called `which`, or has this number, counted from 0, of the sweep in `folder`.
pub fn run_cell(folder: &Path, which: &str, leashed: bool, log: &Log, quiet: bool) -> Result<(), Failure> {
    let start = Instant::now();
    if leashed {
        hold();
    }
    let cells = Plan::read(folder)?.cells();
    let cell = find(&cells, which)?;
    let _claim = claim::take(folder, &cell.name, leashed)?;
    last_words::forget(folder, &cell.name);
    let work = || -> Result<(), Failure> {
        let config = load_config(folder, &cell.name)?;
        let root = run_folder(folder, &cell.name);
        match root.join("run.json").exists() {
            true => resume::go_on(&root, &config, start, log, quiet),
            false => run::begin(&root, &config, false, start, log, quiet),
        }
    };
    // A plugin's panic is told like an error.
    let done = cdl_core::catch(|| Ok(work())).map_err(Failure::before_writing).flatten();
    if let Some(failure) = done.as_ref().err().filter(|failure| !failure.is_stop()) {
        last_words::leave(folder, &cell.name, &failure.message);
    }
    done
}

fn find<'a>(cells: &'a [Cell], which: &str) -> Result<&'a Cell, Failure> {
    let number = which.parse().ok().and_then(|number: usize| cells.get(number));
    number.or_else(|| cells.iter().find(|cell| cell.name == which)).ok_or_else(|| {
        let (first, last) = (cells.first().map_or("", |cell| &cell.name), cells.len().saturating_sub(1));
        Failure::mistake(format!("--cell {which}: the sweep has the cells 0 to {last}, called like {first}"))
    })
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
