//! Tables with a column for each metric.

use cdl_core::{
    metrics::{DEFINITIONS, Definition},
    traits::Role,
};
use maud::{Markup, html};

use super::html;
use crate::statistics::{Spread, rounded};

/// Symbols in the formulas.
pub const NOTATION: &str = "A[i][j] is the accuracy on the test images of task j after learning task i, with predictions \
                            among all learned classes. T is the number of tasks; i and j count from 0.";

/// Row of a table: a configuration, a combination of a sweep, or a run.
pub struct Row {
    /// Beginning of the ids of its values, which end with network and metric.
    pub id: String,
    pub name: String,
    /// Text below the name; empty without one.
    pub note: String,
    /// Number of runs.
    pub runs: usize,
}

/// Table for one network. `title` is the title of the column of names. `spread` returns mean and deviation of a metric
/// by the index of the row, and `difference` the lines below them.
pub fn table(
    role: Role,
    title: &str,
    rows: &[Row],
    spread: impl Fn(usize, &Definition) -> Option<Spread>,
    difference: impl Fn(usize, &Definition) -> Vec<String>,
) -> Markup {
    let counted = rows.iter().any(|row| row.runs != 1);
    let head = html! {
        th { (role.as_str()) small { (title) } }
        @if counted { (html::number_head("n", None)) }
        @for definition in DEFINITIONS { (html::number_head(definition.title, None)) }
    };
    let body = html! {
        @for (index, Row { id, name, note, runs }) in rows.iter().enumerate() {
            tr {
                td { (name) @if !note.is_empty() { small { (note) } } }
                @if counted { td.n { (runs) } }
                @for definition in &DEFINITIONS {
                    @let spread = spread(index, definition);
                    @let id = format!("{id}-{}-{}", role.as_str(), definition.name);
                    (value(&id, spread, &difference(index, definition)))
                }
            }
        }
    };
    html::table(&head, &body)
}

/// Cell with a mean, its deviation, and lines below them.
pub fn value(id: &str, spread: Option<Spread>, below: &[String]) -> Markup {
    let more = html! {
        (spread.map(|spread| spread.deviation_text()).unwrap_or_default())
        @for line in below { small { (line) } }
    };
    html::number(id, spread.map(|spread| spread.mean), rounded, &more)
}

/// Formulas of all metrics.
pub fn definitions() -> Markup {
    let head = html! { th { "Metric" } th { "Formula" } };
    let rows = html! { @for metric in DEFINITIONS { tr { td { (metric.title) } td { (metric.formula) } } } };
    html! {
        details {
            summary { "Definitions of the metrics" }
            p { (NOTATION) }
            (html::table(&head, &rows))
        }
    }
}
