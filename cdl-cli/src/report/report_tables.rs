//! Summary as CSV, Markdown and LaTeX: a row for each network of each run.

use cdl_core::metrics::{DEFINITIONS, Definition};

use super::{
    recorded_run::RecordedRun,
    table_formats::{csv, digits, latex, latex_head, markdown, markdown_definitions, with_metrics},
};
use crate::failure::Failure;

/// Rows of run, network and all metrics, formatted by `shown`.
fn rows(runs: &[RecordedRun], shown: fn(Option<f64>) -> String) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for run in runs {
        for role in run.roles() {
            let value = |definition: &Definition| shown(run.results.of(role).and_then(definition.value));
            let names = [run.name.clone(), role.as_str().into()].into_iter();
            rows.push(names.chain(DEFINITIONS.iter().map(value)).collect());
        }
    }
    rows
}

/// CSV with all digits; the field of a metric without a value is empty.
pub fn summary_csv(runs: &[RecordedRun]) -> Result<String, Failure> {
    let head = ["run", "network"].into_iter().chain(DEFINITIONS.iter().map(|definition| definition.name));
    csv("summary.csv", head.map(String::from).collect(), rows(runs, digits))
}

/// Markdown with two decimals, followed by the definitions of the metrics.
pub fn summary_markdown(runs: &[RecordedRun]) -> String {
    let rows = rows(runs, |value| value.map_or("–".into(), |value| format!("{value:.2}")));
    markdown(2, &with_metrics(&["run", "network"]), &rows) + "\n" + &markdown_definitions()
}

/// LaTeX with two decimals, with the definitions of the metrics in comments.
pub fn summary_latex(runs: &[RecordedRun]) -> String {
    let rows = rows(runs, |value| value.map_or("--".into(), |value| format!("${value:.2}$")));
    latex_head("") + &latex(2, &with_metrics(&["Run", "Network"]), &rows)
}
