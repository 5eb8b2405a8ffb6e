//! A sweep with all its cells.

use std::path::{Path, PathBuf};

use cdl_core::config::Config;

use super::{
    layout::{is_sweep, look_at_config, run_folder},
    plan::{Cell, Plan, some_of},
};
use crate::{failure::Failure, lifecycle::is_begun};

/// A sweep with all its cells.
pub struct Sweep {
    pub folder: PathBuf,
    pub plan: Plan,
    pub cells: Vec<Cell>,
    /// Configuration of each cell, or why it cannot be read.
    pub configs: Vec<Result<Config, String>>,
}

impl Sweep {
    /// The sweep in `folder`, to be looked at: no plugin that it names is loaded.
    pub fn read(folder: &Path) -> Result<Self, Failure> {
        let plan = Plan::read(folder)?;
        let cells = plan.cells();
        let configs = cells.iter().map(|cell| look_at_config(folder, &cell.name)).collect();
        Ok(Self { folder: folder.into(), plan, cells, configs })
    }
}

/// Refuses a sweep's folder where a run's is expected; `command` is one that takes a run.
pub fn refuse(folder: &Path, command: &str) -> Result<(), Failure> {
    if !is_sweep(folder) {
        return Ok(());
    }
    let names = Plan::read(folder)?.cells().into_iter().map(|cell| cell.name);
    let begun: Vec<String> = names.filter(|name| is_begun(&run_folder(folder, name))).collect();
    let place = folder.display();
    let runs = match &begun[..] {
        [] => "none of its runs has begun".into(),
        [first, ..] => format!(
            "its runs are in {place}/cells: {}; cdl {command} takes one of them, as {place}/cells/{first}",
            some_of(&begun)
        ),
    };
    Err(Failure::invalid(format!(
        "{place} is a sweep, not a run; {runs}; all of them in tables and on {place}/sweep.html: cdl sweep --resume \
         {place} --collect"
    )))
}
