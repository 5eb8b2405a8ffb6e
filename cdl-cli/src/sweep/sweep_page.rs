//! Figure and HTML page of a sweep.

use cdl_core::{
    metrics::{DEFINITIONS, Definition},
    traits::Role,
};
use maud::{Markup, html};

use super::{
    cell_states::State,
    grid::Sweep,
    layout::FILE,
    summary::{Combination, Summary},
};
use crate::{
    report::{
        html,
        metrics_table::{self, Row},
        plot::{Axes, Plot, Series, lines},
        report_page::write_page,
    },
    statistics::{rounded, signed},
    terminal::count,
};

/// Plot of the mean accuracy after each task, with bands of one standard deviation.
pub fn figure(summary: &Summary) -> Plot {
    let (mut series, mut tasks) = (Vec::new(), 0);
    let roles = summary.roles();
    for (colour, combination) in summary.combinations.iter().enumerate() {
        for role in &roles {
            let progress = combination.progress(*role);
            tasks = tasks.max(progress.len());
            if progress.is_empty() {
                continue;
            }
            let name = match roles.len() {
                1 => combination.title(),
                _ => format!("{}, {}", combination.title(), role.as_str()),
            };
            series.push(Series::of_spreads(name, colour, *role == Role::Teacher, &progress));
        }
    }
    let axes = Axes::of_names("after task", true, (1..=tasks).map(|task| task.to_string()).collect());
    lines("Average accuracy over the tasks so far, %", &axes, &series)
}

/// Page of the sweep. Also writes the page of every finished cell and links to it.
pub fn page(sweep: &Sweep, summary: &Summary, states: &[State], figure: &Plot) -> String {
    let plan = std::fs::read_to_string(sweep.folder.join(FILE)).unwrap_or_default();
    let body = html! {
        p { (summary.done()) " of " (count(summary.cells(), "cell")) " done." }
        h2 { "Means" }
        p {
            "In percent: mean ± sample standard deviation over the repetitions. Below it: the mean paired difference from \
             the baseline, with its 95 % confidence interval (Student's t distribution)."
        }
        @for role in summary.roles() { (means(summary, role)) }
        (metrics_table::definitions())
        h2 { "Accuracy after each task" }
        p {
            "Average accuracy over the tasks so far: mean over the repetitions, with a band of one standard deviation."
        }
        div.plots { div { (figure.inline()) } }
        h2 { "Cells" }
        (cells(summary, states))
        h2 { "Plan" }
        (html::file(FILE, &plan))
    };
    html::document(&summary.name, &body)
}

/// Table of means: a row for each combination, a column for each metric.
fn means(summary: &Summary, role: Role) -> Markup {
    let row = |(number, combination): (usize, &Combination)| Row {
        id: (number + 1).to_string(),
        name: combination.title(),
        note: if number == summary.baseline { "baseline".into() } else { String::new() },
        runs: combination.done(),
    };
    let rows: Vec<Row> = summary.combinations.iter().enumerate().map(row).collect();
    let spread =
        |number: usize, definition: &Definition| summary.combinations.get(number)?.spread(role, definition);
    let difference =
        |number: usize, definition: &Definition| match summary.difference(number, role, definition) {
            Some(difference) => {
                vec![signed(difference.mean), difference.interval_text().trim().into()]
            }
            None => Vec::new(),
        };
    metrics_table::table(role, &summary.combination_title(), &rows, spread, difference)
}

/// Table of cells: state, the two published metrics, and a link to the page of each cell.
fn cells(summary: &Summary, states: &[State]) -> Markup {
    let shown = &DEFINITIONS[..2];
    let head = html! {
        th { "cell" }
        th { "state" }
        @for role in summary.roles() {
            @for definition in shown { (html::number_head(definition.title, Some(role.as_str()))) }
        }
    };
    let outcomes = summary.combinations.iter().flat_map(|combination| &combination.cells);
    let rows = html! {
        @for (cell, state) in outcomes.zip(states) {
            // An unreadable run must not prevent the page of the sweep.
            @let written = cell.results.as_ref().map(|_| write_page(&cell.root).map_err(|failure| {
                tracing::warn!("{}: its page cannot be written: {}", cell.name, failure.message);
                failure.message
            }));
            @let error = written.as_ref().and_then(|written| written.as_ref().err());
            tr {
                td {
                    @if let Some(Ok(())) = written {
                        a href={ "cells/" (cell.name) "/report.html" } { (cell.name) }
                    } @else { (cell.name) }
                }
                td {
                    @if *state == State::Waiting { "not started" } @else { (state.name()) }
                    @if let Some(reason) = state.reason().or(error.map(String::as_str)) { small { (reason) } }
                }
                @for role in summary.roles() {
                    @for definition in shown {
                        td.n { (cell.value(role, definition).map_or("–".into(), rounded)) }
                    }
                }
            }
        }
    };
    html::table(&head, &rows)
}
