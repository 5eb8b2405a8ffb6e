//! Summary as tables: CSV with a row for each network of each run; Markdown and LaTeX with a row for each network of each
//! configuration.

use cdl_core::metrics::{DEFINITIONS, Definition};

use super::{
    configuration::Configuration,
    recorded_run::RecordedRun,
    summary_section::AVERAGED,
    table_formats::{csv, digits, latex, latex_head, markdown, markdown_definitions, with_metrics},
};
use crate::{failure::Failure, statistics::Spread};

/// CSV with all digits; the field of a metric without a value is empty.
pub fn summary_csv(runs: &[RecordedRun]) -> Result<String, Failure> {
    let head = ["run", "network"].into_iter().chain(DEFINITIONS.iter().map(|definition| definition.name));
    let mut rows = Vec::new();
    for run in runs {
        for role in run.roles() {
            let value = |definition: &Definition| digits(run.results.of(role).and_then(definition.value));
            let names = [run.name.clone(), role.as_str().into()].into_iter();
            rows.push(names.chain(DEFINITIONS.iter().map(value)).collect());
        }
    }
    csv("summary.csv", head.map(String::from).collect(), rows)
}

/// Rows of configuration, network, number of runs if any configuration has several, and all metrics.
fn rows(configurations: &[Configuration], shown: fn(Option<Spread>) -> String) -> Vec<Vec<String>> {
    let counted = is_counted(configurations);
    let mut rows = Vec::new();
    for configuration in configurations {
        for role in configuration.first.roles() {
            let mut row = vec![configuration.name.clone(), role.as_str().into()];
            row.extend(counted.then(|| configuration.runs.len().to_string()));
            row.extend(DEFINITIONS.iter().map(|definition| shown(configuration.spread(role, definition))));
            rows.push(row);
        }
    }
    rows
}

fn is_counted(configurations: &[Configuration]) -> bool {
    configurations.iter().any(Configuration::is_repeated)
}

/// Markdown with two decimals, followed by the definitions of the metrics.
pub fn summary_markdown(configurations: &[Configuration]) -> String {
    let rows = rows(configurations, |value| value.map_or("–".into(), |value| value.text()));
    let (head, note) = match is_counted(configurations) {
        true => (with_metrics(&["configuration", "network", "n"]), format!("In percent: {AVERAGED}.\n\n")),
        false => (with_metrics(&["configuration", "network"]), String::new()),
    };
    markdown(2, &head, &rows) + "\n" + &note + &markdown_definitions()
}

/// LaTeX with two decimals, with the definitions of the metrics in comments.
pub fn summary_latex(configurations: &[Configuration]) -> String {
    let shown = |value: Option<Spread>| match value {
        Some(value) => format!("${}$", value.text().replace('±', "\\pm")),
        None => "--".into(),
    };
    let (head, note) = match is_counted(configurations) {
        true => (
            with_metrics(&["Configuration", "Network", "$n$"]),
            format!("% in percent: {}\n", AVERAGED.replace('±', "+-")),
        ),
        false => (with_metrics(&["Configuration", "Network"]), String::new()),
    };
    latex_head(&note) + &latex(2, &head, &rows(configurations, shown))
}
