//! States of a sweep's cells, and `sweep.json`, which has them.

use std::path::Path;

use cdl_core::{config::Config, run::resume_check::check_config, system::atomic::write_atomic};
use serde_json::{Map, Value, json};

use super::{
    axis::{self, Axis},
    cell_process::noted_failure,
    grid::Sweep,
    layout::{is_cell_held, read_recorded, run_folder},
    plan::Cell,
};
use crate::{
    failure::{Failure, first_line},
    lifecycle::{damaged_results, is_begun, is_finished},
    terminal::shell,
};

const FILE: &str = "sweep.json";

/// State of a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Not begun.
    Waiting,
    /// Begun, and neither finished nor running.
    Stopped,
    /// A process runs it.
    Running,
    Done,
    /// Ended without being finished, with what its process said.
    Failed(String),
    /// Its configuration, or that of its run, cannot be read. Whether the run is the cell's is unknown, so it is left alone.
    Unreadable(String),
}

impl State {
    /// Name in `sweep.json`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Stopped => "stopped",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed(_) => "failed",
            Self::Unreadable(_) => "unreadable",
        }
    }

    /// Reason of a failure.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Failed(reason) | Self::Unreadable(reason) => Some(reason),
            _ => None,
        }
    }

    /// Reason of a failure and what becomes of the cell, to follow its name.
    pub fn trouble(&self) -> Option<String> {
        let what =
            if matches!(self, Self::Failed(_)) { "failed" } else { "cannot be read and is left alone" };
        Some(format!("{what}: {}", self.reason()?))
    }
}

/// Writes the states of all cells.
pub fn write(sweep: &Sweep, states: &[State]) -> Result<(), Failure> {
    let named = |(axis, value): (&Axis, &axis::Value)| (axis.name.clone(), value.label.clone().into());
    let entry = |(cell, state): (&Cell, &State)| {
        let mut entry = json!({
            "name": cell.name,
            "values": sweep.plan.axes().zip(&cell.values).map(named).collect::<Map<_, _>>(),
            "files": cell.values.iter().flat_map(|v| &v.files).map(|f| f.display().to_string()).collect::<Vec<_>>(),
            "sets": cell.values.iter().flat_map(|v| &v.sets).collect::<Vec<_>>(),
            "state": state.name(),
        });
        if let Some(reason) = state.reason() {
            entry["reason"] = reason.into();
        }
        entry
    };
    let cells: Vec<Value> = sweep.cells.iter().zip(states).map(entry).collect();
    let written = json!({ "version": env!("CARGO_PKG_VERSION"), "cells": cells });
    Ok(write_atomic(&sweep.folder.join(FILE), format!("{written:#}\n").as_bytes())?)
}

/// State of each cell, from the files in the sweep's folder.
pub fn look(sweep: &Sweep) -> Result<Vec<State>, Failure> {
    let cells = sweep.cells.iter().zip(&sweep.configs);
    cells.map(|(cell, config)| look_at(&sweep.folder, &cell.name, config)).collect()
}

fn look_at(folder: &Path, cell: &str, config: &Result<Config, String>) -> Result<State, Failure> {
    let root = run_folder(folder, cell);
    let begun = is_begun(&root);
    let config = match config {
        Ok(config) => config,
        Err(reason) => return Ok(State::Unreadable(reason.clone())),
    };
    if begun {
        let recorded = match read_recorded(&root.join("config.toml")) {
            Ok(recorded) => recorded,
            Err(reason) => return Ok(not_told(reason, &root)),
        };
        check_config(&recorded, config).map_err(|error| {
            Failure::invalid(format!("{} is not this sweep's: {}", root.display(), first_line(&error)))
        })?;
        if is_finished(&root, config) {
            return Ok(State::Done);
        }
    }
    if is_cell_held(folder, cell) {
        return Ok(State::Running);
    }
    // With a checkpoint the cell goes on, and writes them again.
    if let Some(error) = damaged_results(&root).filter(|_| !root.join("checkpoints").exists()) {
        return Ok(not_told(first_line(&error), &root));
    }
    Ok(match noted_failure(folder, cell) {
        Some(reason) => State::Failed(reason),
        None if begun => State::Stopped,
        None => State::Waiting,
    })
}

fn not_told(reason: String, root: &Path) -> State {
    let again = "without that folder the cell is run again";
    State::Unreadable(format!("{reason}; {again}: {}", root.display()))
}

/// Number of cells that are not done, and what becomes of them; `None` if all are done.
pub fn what_is_left(folder: &Path, states: &[State]) -> Option<String> {
    let count = |is: fn(&State) -> bool| states.iter().filter(|state| is(state)).count();
    let failed = count(|state| matches!(state, State::Failed(_)));
    let unreadable = count(|state| matches!(state, State::Unreadable(_)));
    let others = count(|state| *state != State::Done) - failed - unreadable;
    let (resume, cells) = (format!("`cdl resume {}`", shell(folder)), states.len());
    let are = |count: usize| if count == 1 { "is" } else { "are" };
    let mut parts = Vec::new();
    if failed > 0 {
        let more = format!(", {others} more {} not done", are(others));
        let (more, logs) = (if others > 0 { more } else { String::new() }, folder.join("logs"));
        let logs = logs.display();
        parts.push(format!(
            "{failed} of {cells} cells failed{more}; their logs are in {logs}, and {resume} tries them again"
        ));
    } else if others > 0 {
        parts.push(format!("{others} of {cells} cells are not done; {resume} goes on with them"));
    }
    if unreadable > 0 {
        let of = if parts.is_empty() { format!(" of {cells} cells") } else { String::new() };
        parts.push(format!("{unreadable}{of} cannot be read and {} left alone", are(unreadable)));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_resume_goes_on_with_and_what_it_leaves_alone_are_counted_apart() {
        use State::{Done, Failed, Running, Stopped, Unreadable, Waiting};
        let failed = || Failed("x".into());
        let damaged = || Unreadable("y".into());
        let again = "their logs are in grid/logs, and `cdl resume grid` tries them again";
        let go_on = "`cdl resume grid` goes on with them";
        let many = [damaged(), failed(), failed(), damaged(), Waiting, Stopped];
        for (states, expected) in [
            (vec![Stopped, Running, Done], format!("2 of 3 cells are not done; {go_on}")),
            (vec![failed(), Done], format!("1 of 2 cells failed; {again}")),
            (vec![failed(), Waiting], format!("1 of 2 cells failed, 1 more is not done; {again}")),
            (vec![damaged(), Done], "1 of 2 cells cannot be read and is left alone".into()),
            (vec![damaged(), damaged()], "2 of 2 cells cannot be read and are left alone".into()),
            (
                vec![damaged(), Waiting],
                format!("1 of 2 cells are not done; {go_on}; 1 cannot be read and is left alone"),
            ),
            (
                many.into(),
                format!(
                    "2 of 6 cells failed, 2 more are not done; {again}; 2 cannot be read and are left alone"
                ),
            ),
        ] {
            assert_eq!(what_is_left(Path::new("grid"), &states), Some(expected));
        }
        assert_eq!(what_is_left(Path::new("grid"), &[Done, Done]), None);
    }
}
