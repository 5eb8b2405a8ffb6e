//! States of a sweep's cells, and `sweep.json`, which records them.

use std::path::Path;

use cdl_core::{config::Config, run::resume_check::check_config, system::atomic::write_atomic};
use serde_json::{Map, Value, json};

use super::{
    axis::{self, Axis},
    cell_process::recorded_failure,
    grid::Sweep,
    layout::{is_cell_locked, read_recorded, run_folder},
    plan::Cell,
};
use crate::{
    failure::{Failure, first_line},
    lifecycle::{damaged_results, is_begun, is_finished},
    terminal::{count, shell_quoted},
};

const FILE: &str = "sweep.json";

/// State of a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Not started.
    Waiting,
    /// Started, but neither finished nor running.
    Stopped,
    /// A process runs the cell.
    Running,
    /// All tasks of the run are finished.
    Done,
    /// Not finished; contains the last error of its process.
    Failed(String),
    /// The configuration of the cell or of its run cannot be read. The run may not belong to the cell, so it is
    /// skipped.
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

    /// Reason why the cell has failed or is unreadable; `None` in other states.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Failed(reason) | Self::Unreadable(reason) => Some(reason),
            _ => None,
        }
    }

    /// Description of a failed or unreadable cell, to follow its name in messages.
    pub fn problem(&self) -> Option<String> {
        let state = if matches!(self, Self::Failed(_)) { "failed" } else { "cannot be read and is skipped" };
        Some(format!("{state}: {}", self.reason()?))
    }
}

/// Writes the states of all cells to `sweep.json`.
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

/// Reads the state of each cell from the files in the sweep's folder.
pub fn read_all(sweep: &Sweep) -> Result<Vec<State>, Failure> {
    let cells = sweep.cells.iter().zip(&sweep.configs);
    cells.map(|(cell, config)| read_state(&sweep.folder, &cell.name, config)).collect()
}

fn read_state(folder: &Path, cell: &str, config: &Result<Config, String>) -> Result<State, Failure> {
    let root = run_folder(folder, cell);
    let begun = is_begun(&root);
    let config = match config {
        Ok(config) => config,
        Err(reason) => return Ok(State::Unreadable(reason.clone())),
    };
    if begun {
        let recorded = match read_recorded(&root.join("config.toml")) {
            Ok(recorded) => recorded,
            Err(reason) => return Ok(unreadable(&reason, &root)),
        };
        check_config(&recorded, config).map_err(|error| {
            Failure::invalid(format!(
                "{} does not belong to this sweep: {}",
                root.display(),
                first_line(&error)
            ))
        })?;
        if is_finished(&root, config) {
            return Ok(State::Done);
        }
    }
    if is_cell_locked(folder, cell) {
        return Ok(State::Running);
    }
    // With a checkpoint, the cell resumes and writes its results again.
    if let Some(error) = damaged_results(&root).filter(|_| !root.join("checkpoints").exists()) {
        return Ok(unreadable(&first_line(&error), &root));
    }
    Ok(match recorded_failure(folder, cell) {
        Some(reason) => State::Failed(reason),
        None if begun => State::Stopped,
        None => State::Waiting,
    })
}

fn unreadable(reason: &str, root: &Path) -> State {
    State::Unreadable(format!("{reason}; remove {} to run the cell again", root.display()))
}

/// Message about the unfinished cells and how to continue them; `None` if all are done.
pub fn unfinished(folder: &Path, states: &[State]) -> Option<String> {
    let number = |is: fn(&State) -> bool| states.iter().filter(|state| is(state)).count();
    let failed = number(|state| matches!(state, State::Failed(_)));
    let unreadable = number(|state| matches!(state, State::Unreadable(_)));
    let others = number(|state| *state != State::Done) - failed - unreadable;
    let (resume, cells) = (format!("`cdl resume {}`", shell_quoted(folder)), count(states.len(), "cell"));
    let are = |number: usize| if number == 1 { "is" } else { "are" };
    let mut parts = Vec::new();
    if failed > 0 {
        let more = format!(", {others} more {} not done", are(others));
        let (more, logs) = (if others > 0 { more } else { String::new() }, folder.join("logs"));
        let logs = logs.display();
        parts.push(format!("{failed} of {cells} failed{more}; logs are in {logs}; {resume} runs them again"));
    } else if others > 0 {
        parts.push(format!("{others} of {cells} {} not done; {resume} continues", are(others)));
    }
    if unreadable > 0 {
        let of = if parts.is_empty() { format!(" of {cells}") } else { String::new() };
        parts.push(format!("{unreadable}{of} cannot be read and {} skipped", are(unreadable)));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_unfinished_and_unreadable_cells_are_counted_separately() {
        use State::{Done, Failed, Running, Stopped, Unreadable, Waiting};
        let failed = || Failed("x".into());
        let damaged = || Unreadable("y".into());
        let again = "logs are in grid/logs; `cdl resume grid` runs them again";
        let resume = "`cdl resume grid` continues";
        let many = [damaged(), failed(), failed(), damaged(), Waiting, Stopped];
        for (states, expected) in [
            (vec![Stopped, Running, Done], format!("2 of 3 cells are not done; {resume}")),
            (vec![failed(), Done], format!("1 of 2 cells failed; {again}")),
            (vec![failed(), Waiting], format!("1 of 2 cells failed, 1 more is not done; {again}")),
            (vec![damaged(), Done], "1 of 2 cells cannot be read and is skipped".into()),
            (vec![damaged(), damaged()], "2 of 2 cells cannot be read and are skipped".into()),
            (
                vec![damaged(), Waiting],
                format!("1 of 2 cells is not done; {resume}; 1 cannot be read and is skipped"),
            ),
            (
                many.into(),
                format!(
                    "2 of 6 cells failed, 2 more are not done; {again}; 2 cannot be read and are skipped"
                ),
            ),
        ] {
            assert_eq!(unfinished(Path::new("grid"), &states), Some(expected));
        }
        assert_eq!(unfinished(Path::new("grid"), &[Done, Done]), None);
    }
}
