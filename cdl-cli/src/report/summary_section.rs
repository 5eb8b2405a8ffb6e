//! Summary: all metrics of all configurations.

use cdl_core::{
    metrics::{DEFINITIONS, Definition},
    traits::Role,
};
use maud::{Markup, html};

use super::{
    configuration::Configuration,
    html,
    metrics_table::{self, NOTATION, Row},
    recorded_run::{ROLES, RecordedRun},
};
use crate::statistics::{Spread, signed};

/// Explanation of means, for tables in which runs are averaged.
pub const AVERAGED: &str = "mean ± sample standard deviation (divided by n - 1) over the n runs of a configuration, which \
                            differ only in their seeds";

/// Section of the page.
pub fn section(configurations: &[Configuration]) -> Markup {
    let repeated = configurations.iter().any(Configuration::is_repeated);
    html! {
        h2 { "Summary" }
        p {
            "In percent" @if repeated { ": " (AVERAGED) } "."
            @match configurations {
                [_] => { " " (NOTATION) }
                _ => " Below each value: its difference from the first configuration.",
            }
        }
        @match configurations {
            [only] => (one(only)),
            _ => {
                @for role in ROLES { (several(configurations, role)) }
                (metrics_table::definitions())
            }
        }
        @if repeated { (each_run(configurations)) }
    }
}

/// Table of one configuration: a row for each metric, a column for each network.
fn one(configuration: &Configuration) -> Markup {
    let roles: Vec<Role> = configuration.first.roles().collect();
    let head = html! { th { "Metric" } @for role in &roles { (html::number_head(role.as_str(), None)) } };
    let rows = html! {
        @for definition in &DEFINITIONS {
            tr {
                td { (definition.title) small { (definition.formula) } }
                @for &role in &roles {
                    @let id = format!("1-{}-{}", role.as_str(), definition.name);
                    (metrics_table::value(&id, configuration.spread(role, definition), &[]))
                }
            }
        }
    };
    html::table(&head, &rows)
}

/// Table of one network: a row for each configuration, a column for each metric; empty if no run trained the network.
fn several(configurations: &[Configuration], role: Role) -> Markup {
    let trained = |configuration: &Configuration| configuration.first.results.of(role).is_some();
    let rows = |(number, configuration): (usize, &Configuration)| Row {
        id: number.to_string(),
        name: configuration.name.clone(),
        note: String::new(),
        runs: configuration.runs.len(),
    };
    let spread = |index: usize, definition: &Definition| configurations.get(index)?.spread(role, definition);
    let difference = |index: usize, definition: &Definition| match index {
        0 => Vec::new(),
        _ => {
            let means = spread(index, definition).zip(spread(0, definition));
            means.map(|(of, from)| signed(of.mean - from.mean)).into_iter().collect()
        }
    };
    let rows: Vec<Row> = (1..).zip(configurations).map(rows).collect();
    html! {
        @if configurations.iter().any(trained) {
            (metrics_table::table(role, "configuration", &rows, spread, difference))
        }
    }
}

/// Folded tables of the values of each run.
fn each_run(configurations: &[Configuration]) -> Markup {
    let runs: Vec<&RecordedRun> =
        configurations.iter().flat_map(|configuration| configuration.runs.clone()).collect();
    let row = |(number, run): (usize, &&RecordedRun)| Row {
        id: format!("run-{number}"),
        name: run.name.clone(),
        note: run.seeds(),
        runs: 1,
    };
    let rows: Vec<Row> = (1..).zip(&runs).map(row).collect();
    let of = |role: Role| {
        let runs = &runs;
        move |index: usize, definition: &Definition| {
            let value = (definition.value)(runs.get(index)?.results.of(role)?)?;
            Spread::of(&[value])
        }
    };
    html! {
        details {
            summary { "Values of each run" }
            @for role in ROLES.into_iter().filter(|role| runs.iter().any(|run| run.results.of(*role).is_some())) {
                (metrics_table::table(role, "run", &rows, of(role), |_, _| Vec::new()))
            }
        }
    }
}
