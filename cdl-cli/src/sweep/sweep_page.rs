//! Figure and HTML page of a sweep.

use cdl_core::{metrics::DEFINITIONS, traits::Role};
use maud::{Markup, html};

use super::{cell_states::State, grid::Sweep, layout::FILE, statistics::Spread, summary::Summary};
use crate::{
    report::{
        html,
        plot::{Axes, Plot, Series, lines},
        report_page::write_page,
    },
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
            let values = progress.iter().map(|spread| spread.map(|spread| spread.mean)).collect();
            let ends = |spread: &Option<Spread>| {
                let Spread { mean, deviation, .. } = (*spread)?;
                Some((mean - deviation?, mean + deviation?))
            };
            let (dashed, band) = (*role == Role::Teacher, progress.iter().map(ends).collect());
            series.push(Series { name, colour, dashed, values, band });
        }
    }
    let places = (1..=tasks).map(|task| task.to_string()).collect();
    let axes = Axes { x: "after task", percent: true, places, groups: Vec::new() };
    lines("Average accuracy over the tasks so far, %", &axes, &series, 620.0)
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
    let head = html! {
        th { (role.as_str()) small { (summary.combination_title()) } }
        (html::number_head("n", None))
        @for definition in DEFINITIONS { (html::number_head(definition.title, Some(definition.formula))) }
    };
    let rows = html! {
        @for (number, combination) in summary.combinations.iter().enumerate() {
            tr {
                td { (combination.title()) @if number == summary.baseline { small { "baseline" } } }
                td.n { (combination.done()) }
                @for definition in &DEFINITIONS {
                    @let spread = combination.spread(role, definition);
                    @let more = html! {
                        (spread.map(|spread| spread.deviation_text()).unwrap_or_default())
                        @if let Some(difference) = summary.difference(number, role, definition) {
                            small { (format!("{:+.2}", difference.mean)) (difference.interval_text()) }
                        }
                    };
                    @let mean = spread.map(|spread| spread.mean);
                    (html::number((number, role, definition.name), mean, |mean| format!("{mean:.2}"), &more))
                }
            }
        }
    };
    html::table(&head, &rows)
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
                        td.n { (cell.value(role, definition).map_or("–".into(), |value| format!("{value:.2}"))) }
                    }
                }
            }
        }
    };
    html::table(&head, &rows)
}
