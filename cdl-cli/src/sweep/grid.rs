//! Sweep with all its cells and their configurations.

use std::path::{Path, PathBuf};

use cdl_core::config::Config;

use super::{
    layout::{is_sweep, read_config, run_folder},
    plan::{Cell, Plan, first_names},
};
use crate::{failure::Failure, lifecycle::is_begun};

/// Sweep with all its cells.
pub struct Sweep {
    pub folder: PathBuf,
    pub plan: Plan,
    pub cells: Vec<Cell>,
    /// Configuration of each cell, or the reason why it cannot be read.
    pub configs: Vec<Result<Config, String>>,
}

impl Sweep {
    /// Reads the sweep in `folder` without loading the plugins that it names.
    pub fn read(folder: &Path) -> Result<Self, Failure> {
        let plan = Plan::read(folder)?;
        let cells = plan.cells();
        let configs = cells.iter().map(|cell| read_config(folder, &cell.name)).collect();
        Ok(Self { folder: folder.into(), plan, cells, configs })
    }
}

/// Fails if `folder`, which `command` expects to be a run directory, is a sweep.
pub fn expect_run(folder: &Path, command: &str) -> Result<(), Failure> {
    if !is_sweep(folder) {
        return Ok(());
    }
    let names = Plan::read(folder)?.cells().into_iter().map(|cell| cell.name);
    let begun: Vec<String> = names.filter(|name| is_begun(&run_folder(folder, name))).collect();
    let place = folder.display();
    let runs = match &begun[..] {
        [] => "none of its runs has started".into(),
        [first, ..] => format!(
            "its runs are in {place}/cells ({}); for one of them: cdl {command} {place}/cells/{first}",
            first_names(&begun)
        ),
    };
    Err(Failure::invalid(format!(
        "{place} is a sweep, not a run; {runs}; for tables and a page of all: cdl sweep --resume {place} --collect"
    )))
}
