//! Results of a sweep by combination.

use std::path::{Path, PathBuf};

use cdl_core::{
    metrics::Definition,
    run::directory::{Results, read_results},
    traits::Role,
};

use super::{
    axis::Axis,
    cell_states::{State, read_all},
    grid::Sweep,
    layout::run_folder,
};
use crate::{
    failure::Failure,
    report::recorded_run::{ROLES, folder_name},
    statistics::{Spread, differences},
};

/// All combinations with the results of their cells.
pub struct Summary {
    /// Name of the sweep's folder.
    pub name: String,
    /// Names of the varied axes.
    pub vary: Vec<String>,
    /// Names of the repeated axes.
    pub repeat: Vec<String>,
    /// Combinations in the order of the values.
    pub combinations: Vec<Combination>,
    /// Index of the combination that the others are compared with.
    pub baseline: usize,
}

/// Combination of one value per varied axis, with all its repetitions.
pub struct Combination {
    /// Labels of the combination's values, one for each varied axis.
    pub labels: Vec<String>,
    /// Cells in the order of the repetitions, which is the same in all combinations.
    pub cells: Vec<Outcome>,
}

/// Outcome of one cell.
pub struct Outcome {
    /// Name of the cell.
    pub name: String,
    /// Labels of the cell's values, one for each repeated axis.
    pub labels: Vec<String>,
    /// Run directory.
    pub root: PathBuf,
    /// Results, if the cell is done.
    pub results: Option<Results>,
}

impl Outcome {
    /// Value of a metric for one network.
    pub fn value(&self, role: Role, definition: &Definition) -> Option<f64> {
        (definition.value)(self.results.as_ref()?.of(role)?)
    }
}

impl Combination {
    /// Name for tables and legends.
    pub fn title(&self) -> String {
        if self.labels.is_empty() { "all".into() } else { self.labels.join(", ") }
    }

    /// Value of a metric in each repetition.
    pub fn values(&self, role: Role, definition: &Definition) -> Vec<Option<f64>> {
        self.cells.iter().map(|cell| cell.value(role, definition)).collect()
    }

    /// Mean and deviation of a metric over the finished repetitions.
    pub fn spread(&self, role: Role, definition: &Definition) -> Option<Spread> {
        Spread::of(&self.values(role, definition).into_iter().flatten().collect::<Vec<_>>())
    }

    /// Number of finished repetitions.
    pub fn done(&self) -> usize {
        self.cells.iter().filter(|cell| cell.results.is_some()).count()
    }

    /// Average accuracy over the tasks so far, after each task: mean and deviation over the finished repetitions.
    pub fn progress(&self, role: Role) -> Vec<Option<Spread>> {
        let results = self.cells.iter().filter_map(|cell| cell.results.as_ref()?.of(role));
        let runs: Vec<&[Vec<f64>]> = results.map(|summary| summary.accuracy_matrix.rows()).collect();
        let tasks = runs.iter().map(|rows| rows.len()).max().unwrap_or(0);
        let mean = |row: &Vec<f64>| row.iter().sum::<f64>() / row.len().max(1) as f64;
        let after =
            |task: usize| -> Vec<f64> { runs.iter().filter_map(|rows| rows.get(task)).map(mean).collect() };
        (0..tasks).map(|task| Spread::of(&after(task))).collect()
    }
}

impl Summary {
    /// Reads the sweep in `folder` without changing it and without loading the plugins that it names.
    pub fn of_folder(folder: &Path) -> Result<Self, Failure> {
        let sweep = Sweep::read(folder)?;
        let states = read_all(&sweep)?;
        for (cell, state) in sweep.cells.iter().zip(&states) {
            if let State::Unreadable(reason) = state {
                tracing::warn!("{} is skipped: {reason}", cell.name);
            }
        }
        Self::read(&sweep, &states)
    }

    /// Reads the results of all cells that are done according to `states`.
    pub fn read(sweep: &Sweep, states: &[State]) -> Result<Self, Failure> {
        let names = |axes: &[Axis]| axes.iter().map(|axis| axis.name.clone()).collect();
        let empty = |labels| Combination { labels, cells: Vec::new() };
        let mut combinations: Vec<Combination> = sweep.plan.combinations().into_iter().map(empty).collect();
        for (cell, state) in sweep.cells.iter().zip(states) {
            let root = run_folder(&sweep.folder, &cell.name);
            let results = (*state == State::Done).then(|| read_results(&root)).transpose()?;
            let labels = cell.values.iter().skip(sweep.plan.vary.len()).map(|value| value.label.clone());
            let outcome = Outcome { name: cell.name.clone(), labels: labels.collect(), root, results };
            if let Some(combination) = combinations.get_mut(cell.combination) {
                combination.cells.push(outcome);
            }
        }
        let (vary, repeat, baseline) =
            (names(&sweep.plan.vary), names(&sweep.plan.repeat), sweep.plan.baseline()?);
        Ok(Self { name: folder_name(&sweep.folder, "sweep"), vary, repeat, combinations, baseline })
    }

    /// Title of the column of combinations: the names of the varied axes.
    pub fn combination_title(&self) -> String {
        if self.vary.is_empty() { "combination".into() } else { self.vary.join(", ") }
    }

    /// Networks that were trained in any cell.
    pub fn roles(&self) -> Vec<Role> {
        let cells = self.combinations.iter().flat_map(|combination| &combination.cells);
        let results: Vec<&Results> = cells.filter_map(|cell| cell.results.as_ref()).collect();
        ROLES.into_iter().filter(|role| results.iter().any(|results| results.of(*role).is_some())).collect()
    }

    /// Number of finished cells.
    pub fn done(&self) -> usize {
        self.combinations.iter().map(Combination::done).sum()
    }

    /// Number of cells.
    pub fn cells(&self) -> usize {
        self.combinations.iter().map(|combination| combination.cells.len()).sum()
    }

    /// Combination that the others are compared with.
    pub fn base(&self) -> Option<&Combination> {
        self.combinations.get(self.baseline)
    }

    /// Paired differences of combination `number` from the baseline; `None` for the baseline itself.
    pub fn difference(&self, number: usize, role: Role, definition: &Definition) -> Option<Spread> {
        if number == self.baseline {
            return None;
        }
        let (combination, base) = (self.combinations.get(number)?, self.base()?);
        Spread::of(&differences(&combination.values(role, definition), &base.values(role, definition)))
    }
}
