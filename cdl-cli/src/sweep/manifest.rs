//! `sweep.json`: the cells and what has become of each.

use std::{fs, path::Path};

use cdl_core::{Config, Error, resume::check_config, run_dir::write_atomic};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    Sweep,
    plan::{Cell, run_folder},
};
use crate::{Failure, first_line, resume::is_finished};

/// The file.
const FILE: &str = "sweep.json";

/// What has become of a cell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum State {
    /// Not begun.
    Waiting,
    /// Begun, and neither finished nor running.
    Stopped,
    /// A process of this sweep is at it.
    Running,
    /// Finished.
    Done,
    /// It ended without being finished.
    Failed {
        /// What its process said.
        reason: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Entry {
    name: String,
    /// Its value of everything that is varied or repeated.
    values: Map<String, Value>,
    /// What it lays over the sweep's configuration.
    files: Vec<String>,
    sets: Vec<String>,
    #[serde(flatten)]
    state: State,
}

#[derive(Serialize, Deserialize)]
struct Written {
    version: String,
    cells: Vec<Entry>,
}

/// Writes what has become of all cells.
pub fn write(sweep: &Sweep, states: &[State]) -> Result<(), Failure> {
    let entry = |(cell, state): (&Cell, &State)| Entry {
        name: cell.name.clone(),
        values: sweep.labels(cell).map(|(name, label)| (name.to_string(), label.into())).collect(),
        files: cell.values.iter().flat_map(|value| &value.files).map(|f| f.display().to_string()).collect(),
        sets: cell.values.iter().flat_map(|value| &value.sets).cloned().collect(),
        state: state.clone(),
    };
    let written = Written {
        version: env!("CARGO_PKG_VERSION").into(),
        cells: sweep.cells.iter().zip(states).map(entry).collect(),
    };
    let mut bytes =
        serde_json::to_vec_pretty(&written).map_err(|e| Failure::working(format!("{FILE}: {e}")))?;
    bytes.push(b'\n');
    Ok(write_atomic(&sweep.folder.join(FILE), &bytes)?)
}

/// What has become of each cell, by its run directory; what is only known of a failure comes from the last manifest.
pub fn look(sweep: &Sweep) -> Result<Vec<State>, Failure> {
    let earlier = fs::read(sweep.folder.join(FILE)).ok();
    let earlier: Option<Written> = earlier.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let failed = |cell: &Cell| {
        let mut entries = earlier.iter().flat_map(|written| &written.cells);
        let entry = entries.find(|entry| entry.name == cell.name)?;
        matches!(entry.state, State::Failed { .. }).then(|| entry.state.clone())
    };
    let look = |(cell, config): (&Cell, &Config)| {
        let root = run_folder(&sweep.folder, &cell.name);
        if !root.join("run.json").exists() {
            return Ok(failed(cell).unwrap_or(State::Waiting));
        }
        check_same(&root, config)?;
        Ok(match is_finished(&root, config) {
            true => State::Done,
            false => failed(cell).unwrap_or(State::Stopped),
        })
    };
    sweep.cells.iter().zip(&sweep.configs).map(look).collect()
}

/// Refuses a run directory that holds another run than the cell's.
fn check_same(root: &Path, config: &Config) -> Result<(), Failure> {
    let file = root.join("config.toml");
    let text = fs::read_to_string(&file).map_err(|source| Error::Io { file: file.clone(), source })?;
    let recorded = Config::recorded(&file, &text).map_err(Failure::before_writing)?;
    check_config(&recorded, config).map_err(|error| {
        Failure::mistake(format!("{} is not this sweep's: {}", root.display(), first_line(&error)))
    })
}
