//! A sweep with all its cells.

use std::path::{Path, PathBuf};

use cdl_core::{config::Config, run::directory::read_results};

use super::{
    layout::{is_sweep, look_at_config, run_folder},
    plan::{Cell, Plan},
};
use crate::{failure::Failure, lifecycle::is_begun};

/// Runs named in a message.
const SOME: usize = 3;

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

    /// A cell's value of every axis by name.
    pub fn labels<'a>(&'a self, cell: &'a Cell) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.plan.axes().zip(&cell.values).map(|(axis, value)| (axis.name.as_str(), value.label.as_str()))
    }

    /// Accuracies of a finished cell, in a few words.
    pub fn headline(&self, number: usize) -> String {
        let results = read_results(&run_folder(&self.folder, &self.cells[number].name));
        let Ok(results) = results else { return String::new() };
        let networks = [("teacher", results.teacher), ("student", results.student)];
        let words = networks
            .into_iter()
            .filter_map(|(name, summary)| Some(format!("{name} {:.2} %, ", summary?.average_accuracy)));
        words.collect()
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
        [first, ..] => {
            let more = begun.len().saturating_sub(SOME);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let some = begun.iter().take(SOME).map(String::as_str).collect::<Vec<_>>().join(", ");
            format!(
                "its runs are in {place}/cells: {some}{more}; cdl {command} takes one of them, as {place}/cells/{first}"
            )
        }
    };
    Err(Failure::mistake(format!(
        "{place} is a sweep, not a run; {runs}; all of them in tables and on {place}/sweep.html: cdl sweep --resume \
         {place} --collect"
    )))
}
