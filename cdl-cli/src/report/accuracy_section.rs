//! Plots of accuracies: after each task, by task, and by class.

use super::{
    plot::{self, Axes, Cell, Plot},
    recorded_run::RecordedRun,
    run_series::{Plots, each_network, numbers, series},
};

/// Average accuracy over the tasks so far, after each task.
pub fn after_each_task(runs: &[RecordedRun]) -> Plots {
    let mean = |row: &Vec<f64>| (!row.is_empty()).then(|| row.iter().sum::<f64>() / row.len() as f64);
    let series = series(runs, |run, role| Some(run.accuracies(role)?.iter().map(mean).collect()));
    let plot = |axes| ("accuracy".into(), plot::lines("Average accuracy, %", &axes, &series, 560.0));
    task_axes(runs, "after task", true).map(plot).into_iter().collect()
}

/// Forgetting of each task: accuracy right after learning it minus accuracy after the last task.
pub fn forgetting(runs: &[RecordedRun]) -> Plots {
    let series = series(runs, |run, role| {
        let rows = run.accuracies(role)?;
        let last = rows.last()?;
        let learned = rows.iter().enumerate().map(|(task, row)| row.get(task).zip(last.get(task)));
        Some(learned.map(|pair| pair.map(|(first, last)| first - last)).collect())
    });
    let title = "Forgetting, percentage points";
    let plot = |axes| ("forgetting".into(), plot::bars(title, &axes, &series, 560.0));
    task_axes(runs, "task", false).map(plot).into_iter().collect()
}

/// Axes with a place for each task, if any run has finished a task.
fn task_axes<'a>(runs: &[RecordedRun], x: &'a str, percent: bool) -> Option<Axes<'a>> {
    let matrices = runs.iter().flat_map(|run| run.roles().filter_map(|role| run.accuracies(role)));
    let tasks = matrices.map(<[_]>::len).max().filter(|tasks| *tasks > 0)?;
    Some(Axes { x, percent, places: numbers(tasks), groups: Vec::new() })
}

/// Accuracy matrix of each network.
pub fn matrices(runs: &[RecordedRun]) -> Plots {
    each_network(runs, |run, role, title| {
        let plot = matrix(title, run.accuracies(role)?);
        Some((format!("accuracy_matrix_{}", role.as_str()), plot))
    })
}

/// Heat map of an accuracy matrix: a row for each learned task, a column for each tested task.
pub fn matrix(title: &str, rows: &[Vec<f64>]) -> Plot {
    let names = numbers(rows.len());
    let cell = |after: usize, task: usize, accuracy: &f64| Cell {
        shade: accuracy / 100.0,
        label: if rows.len() > 12 { format!("{accuracy:.0}") } else { format!("{accuracy:.1}") },
        tip: format!("task {} after task {}: {accuracy:.2} %", task + 1, after + 1),
    };
    let title = format!("{title}, accuracy in %");
    plot::heat(&title, (&names, &names), ("after task", "task"), rows, cell, None)
}

/// Accuracy on each class after the last task.
pub fn by_class(runs: &[RecordedRun]) -> Plots {
    let series = series(runs, |run, role| run.results.class_accuracy.of(role).clone());
    let (Some(first), Some(most)) = (runs.first(), series.iter().map(|one| one.values.len()).max()) else {
        return Vec::new();
    };
    let names = first.classes();
    // Runs with other classes, or another order of them, cannot share an axis.
    if runs.iter().any(|run| run.classes() != names) {
        return Vec::new();
    }
    let places: Vec<String> = names.into_iter().take(most).map(String::from).collect();
    vec![("class_accuracy".into(), plot::dots("Accuracy by class, %", &places, &series, 560.0))]
}
