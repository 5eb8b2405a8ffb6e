//! HTML page of one or several runs.

use std::{collections::BTreeSet, path::Path};

use cdl_core::{metrics::DEFINITIONS, system::atomic::write_atomic, traits::Role};
use maud::{Markup, html};

use super::{
    accuracy_section::{after_each_task, by_class, forgetting, matrices},
    confusion_section::confusions,
    cost_section, html,
    loss_section::losses,
    prompt_section::prompts,
    recorded_run::RecordedRun,
    run_series::Plots,
};
use crate::failure::Failure;

/// Section of the page with plots.
pub struct Section {
    title: &'static str,
    note: &'static str,
    /// Plots, each with the name of its file.
    pub plots: Plots,
}

/// Writes `report.html` of a run into its directory.
pub fn write_page(root: &Path) -> Result<(), Failure> {
    let runs = [RecordedRun::with_epochs(root)?];
    Ok(write_atomic(&root.join("report.html"), page(&runs, &sections(&runs)).as_bytes())?)
}

/// All sections with plots.
pub fn sections(runs: &[RecordedRun]) -> Vec<Section> {
    let section = |title, note, plots| Section { title, note, plots };
    vec![
        section(
            "Accuracy after each task",
            "Average accuracy over the tasks learned so far.",
            after_each_task(runs),
        ),
        section(
            "Accuracy matrix",
            "Row: last learned task. Column: task of the test images.",
            matrices(runs),
        ),
        section(
            "Forgetting by task",
            "Accuracy right after learning a task minus accuracy after the last task: A[j][j] - A[T-1][j].",
            forgetting(runs),
        ),
        section(
            "Accuracy by class",
            "After the last task; predictions are among all learned classes.",
            by_class(runs),
        ),
        section(
            "Confusion matrix",
            "After the last task. Numbers are images; shades are shares of the images of the true class.",
            confusions(runs),
        ),
        section(
            "Prompts",
            "Use of each pool's prompts by the test images after the last task. Rows are the tasks of the images. Values \
             are the share of images for which a prompt is selected or, for learners that combine all prompts, the mean \
             weight. The scale of weights ends at the largest weight of the pool.",
            prompts(runs),
        ),
        section(
            "Losses",
            "Means over the steps of an epoch; `loss` is the total that is minimised.",
            losses(runs),
        ),
    ]
}

/// Page of the runs.
pub fn page(runs: &[RecordedRun], sections: &[Section]) -> String {
    let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
    let body = html! {
        @for run in runs { p { (run.headline()) } }
        h2 { "Summary" }
        p {
            "All values in percent. A[i][j] is the accuracy on the test images of task j after learning task i, with \
             predictions among all learned classes. T is the number of tasks; i and j count from 0."
            @if runs.len() > 1 { " Below each value: its difference from the first run." }
        }
        (summary(runs))
        @for Section { title, note, plots } in sections.iter().filter(|section| !section.plots.is_empty()) {
            h2 { (title) }
            p { (note) }
            div.plots { @for (_, plot) in plots { div { (plot.inline()) } } }
        }
        @if let Some(cost) = cost_section::section(runs) { (cost) }
        h2 { "Configuration and record" }
        @if runs.len() > 1 {
            p { "Settings that differ:" }
            (differences(runs))
        }
        @for run in runs {
            (html::file(&format!("{}: config.toml", run.name), &run.config_text))
            (html::file(&format!("{}: run.json", run.name), &format!("{:#}", run.record)))
        }
    };
    html::document(&names.join(", "), &body)
}

/// Summary table: a row for each metric, a column for each network of each run.
fn summary(runs: &[RecordedRun]) -> Markup {
    let networks = |(index, run)| RecordedRun::roles(run).map(move |role| (index, run, role));
    let columns: Vec<(usize, &RecordedRun, Role)> = runs.iter().enumerate().flat_map(networks).collect();
    let head = html! {
        th { "Metric" }
        @for (_, run, role) in &columns {
            (html::number_head(role.as_str(), (runs.len() > 1).then_some(&run.name)))
        }
    };
    let rows = html! {
        @for definition in DEFINITIONS {
            tr {
                td { (definition.title) small { (definition.formula) } }
                @for &(index, run, role) in &columns {
                    @let value_of = |run: &RecordedRun| run.results.of(role).and_then(definition.value);
                    @let value = value_of(run);
                    @let first = runs.first().filter(|_| index > 0).and_then(value_of);
                    @let more = html! {
                        @if let Some((value, first)) = value.zip(first) { small { (format!("{:+.2}", value - first)) } }
                    };
                    (html::number((index, role, definition.name), value, |value| format!("{value:.2}"), &more))
                }
            }
        }
    };
    html::table(&head, &rows)
}

/// Table of settings that differ between runs.
fn differences(runs: &[RecordedRun]) -> Markup {
    let values: Vec<_> = runs.iter().map(RecordedRun::values).collect();
    let keys: BTreeSet<&String> = values.iter().flat_map(|values| values.keys()).collect();
    let head = html! { th { "Key" } @for run in runs { th { (run.name) } } };
    let rows = html! {
        @for key in keys {
            @let row: Vec<_> = values.iter().map(|values| values.get(key)).collect();
            @if row.iter().any(|value| *value != row[0]) {
                tr {
                    td { code { (key) } }
                    @for value in row { td { code { (value.map_or("–", String::as_str)) } } }
                }
            }
        }
    };
    html::table(&head, &rows)
}
