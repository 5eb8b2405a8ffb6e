//! Plots of accuracies: after each task, by task, and by class.

use std::collections::BTreeSet;

use super::{
    configuration::Configuration,
    configuration_series::{Plots, each_network, numbers, series},
    plot::{self, Axes, Cell, Plot},
    recorded_run::RecordedRun,
};
use crate::statistics::Spread;

/// Average accuracy over the tasks so far, after each task.
pub fn after_each_task(configurations: &[Configuration]) -> Plots {
    let mean = |row: &Vec<f64>| (!row.is_empty()).then(|| row.iter().sum::<f64>() / row.len() as f64);
    let series = series(configurations, |run, role| Some(run.accuracies(role)?.iter().map(mean).collect()));
    let plot = |axes| ("accuracy".into(), plot::lines("Average accuracy, %", &axes, &series));
    task_axes(configurations, "after task", true).map(plot).into_iter().collect()
}

/// Forgetting of each task: accuracy right after learning it minus accuracy after the last task.
pub fn forgetting(configurations: &[Configuration]) -> Plots {
    let series = series(configurations, |run, role| {
        let rows = run.accuracies(role)?;
        let last = rows.last()?;
        let learned = rows.iter().enumerate().map(|(task, row)| row.get(task).zip(last.get(task)));
        Some(learned.map(|pair| pair.map(|(first, last)| first - last)).collect())
    });
    let title = "Forgetting, percentage points";
    let plot = |axes| ("forgetting".into(), plot::bars(title, &axes, &series));
    task_axes(configurations, "task", false).map(plot).into_iter().collect()
}

/// Axes with a place for each task, if any run has finished a task.
fn task_axes(configurations: &[Configuration], x: &str, percent: bool) -> Option<Axes> {
    let runs = configurations.iter().flat_map(|configuration| &configuration.runs);
    let matrices = runs.flat_map(|run| run.roles().filter_map(|role| run.accuracies(role)));
    let tasks = matrices.map(<[_]>::len).max().filter(|tasks| *tasks > 0)?;
    Some(Axes::of_names(x, percent, numbers(tasks)))
}

/// Accuracy matrix of each network, averaged over the runs of a configuration.
pub fn matrices(configurations: &[Configuration]) -> Plots {
    each_network(configurations, |configuration, role, title| {
        let runs: Vec<&[Vec<f64>]> =
            configuration.runs.iter().filter_map(|run| run.accuracies(role)).collect();
        let at = |after: usize, task: usize| -> Vec<f64> {
            runs.iter().filter_map(|rows| rows.get(after)?.get(task).copied()).collect()
        };
        let row = |(after, row): (usize, &Vec<f64>)| {
            (0..row.len()).filter_map(|task| Spread::of(&at(after, task))).collect()
        };
        let rows: Vec<Vec<Spread>> = runs.first()?.iter().enumerate().map(row).collect();
        Some((format!("accuracy_matrix_{}", role.as_str()), matrix(title, &rows)))
    })
}

/// Heat map of an accuracy matrix: a row for each learned task, a column for each tested task.
pub fn matrix(title: &str, rows: &[Vec<Spread>]) -> Plot {
    let names = numbers(rows.len());
    let cell = |after: usize, task: usize, accuracy: &Spread| Cell {
        shade: accuracy.mean / 100.0,
        label: match rows.len() {
            0..=12 => format!("{:.1}", accuracy.mean),
            _ => format!("{:.0}", accuracy.mean),
        },
        tip: format!("task {} after task {}: {} %", task + 1, after + 1, accuracy.text()),
    };
    let title = format!("{title}, accuracy in %");
    plot::heat(&title, (&names, &names), ("after task", "task"), rows, cell, None)
}

/// Accuracy on each class after the last task.
pub fn by_class(configurations: &[Configuration]) -> Plots {
    let Some(first) = configurations.first() else { return Vec::new() };
    let names = first.first.classes();
    let set: BTreeSet<&str> = names.iter().copied().collect();
    let is_other = |run: &&RecordedRun| run.classes().into_iter().collect::<BTreeSet<_>>() != set;
    // Runs with other classes cannot share an axis. Another order of them can: values are found by name.
    if configurations
        .iter()
        .flat_map(|configuration| configuration.runs.iter().copied())
        .any(|run| is_other(&run))
    {
        return Vec::new();
    }
    let series = series(configurations, |run, role| {
        let values = run.results.class_accuracy.of(role).as_ref()?;
        let value = |name: &&str| {
            values.get(run.classes().iter().position(|other| other == name)?).copied().flatten()
        };
        Some(names.iter().map(value).collect())
    });
    let is_known =
        |class: &usize| series.iter().any(|one| one.values.get(*class).is_some_and(Option::is_some));
    let most = (0..names.len()).filter(is_known).max().map_or(0, |class| class + 1);
    if most == 0 {
        return Vec::new();
    }
    let places: Vec<String> = names.into_iter().take(most).map(String::from).collect();
    vec![("class_accuracy".into(), plot::dots("Accuracy by class, %", &places, &series))]
}
