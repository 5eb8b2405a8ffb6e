//! HTML page of one or several runs.

use std::path::Path;

use cdl_core::system::atomic::write_atomic;
use maud::{Markup, html};

use super::{
    accuracy_section::{after_each_task, by_class, forgetting, matrices},
    configuration::{Configuration, configurations},
    configuration_series::Plots,
    confusion_section::confusions,
    cost_section, html,
    loss_section::losses,
    plot::Plot,
    prompt_section::prompts,
    recorded_run::RecordedRun,
    settings_section, summary_section,
};
use crate::{failure::Failure, terminal::count};

/// Section of the page with plots.
pub struct Section {
    title: &'static str,
    note: String,
    /// True if plots beyond the first are folded.
    folded: bool,
    /// Plots, each with the name of its file.
    pub plots: Plots,
}

/// Writes `report.html` of a run into its directory.
pub fn write_page(root: &Path) -> Result<(), Failure> {
    let runs = [RecordedRun::with_epochs(root)?];
    let configurations = configurations(&runs);
    let page = page(&configurations, &sections(&configurations));
    Ok(write_atomic(&root.join("report.html"), page.as_bytes())?)
}

/// All sections with plots.
pub fn sections(configurations: &[Configuration]) -> Vec<Section> {
    let repeated = configurations.iter().any(Configuration::is_repeated);
    let section = |title, note: &str, averaged: &str, plots| {
        let averaged = if repeated { averaged } else { "" };
        Section { title, note: format!("{note}{averaged}"), folded: false, plots }
    };
    let bands = " With several seeds: the mean, with a band of one sample standard deviation to either side.";
    vec![
        section(
            "Accuracy after each task",
            "Average accuracy over the tasks learned so far.",
            bands,
            after_each_task(configurations),
        ),
        section(
            "Accuracy matrix",
            "Row: last learned task. Column: task of the test images.",
            " With several seeds: the mean.",
            matrices(configurations),
        ),
        section(
            "Forgetting by task",
            "Accuracy right after learning a task minus accuracy after the last task: A[j][j] - A[T-1][j].",
            " With several seeds: the mean, with a line of one sample standard deviation to either side.",
            forgetting(configurations),
        ),
        section(
            "Accuracy by class",
            "After the last task; predictions are among all learned classes.",
            bands,
            by_class(configurations),
        ),
        section(
            "Confusion matrix",
            "After the last task. Numbers are images; shades are shares of the images of the true class.",
            " With several seeds: the sum.",
            confusions(configurations),
        ),
        Section {
            folded: true,
            ..section(
                "Prompts",
                "Use of each pool's prompts by the test images after the last task. Rows are the tasks of the images. Values \
                 are the share of images for which a prompt is selected or, for learners that combine all prompts, the mean \
                 weight. The scale of weights ends at the largest weight of the pool.",
                "",
                prompts(configurations),
            )
        },
        section(
            "Losses",
            "Means over the steps of an epoch, drawn at its last step; steps are counted from the beginning of each task. \
             `loss` is the total that is minimised.",
            bands,
            losses(configurations),
        ),
    ]
}

/// Page of the configurations.
pub fn page(configurations: &[Configuration], sections: &[Section]) -> String {
    let names: Vec<&str> = configurations.iter().map(|configuration| configuration.name.as_str()).collect();
    let body = html! {
        (settings_section::head(configurations))
        @if let Some(differences) = settings_section::differences(configurations) { (differences) }
        (summary_section::section(configurations))
        @for Section { title, note, folded, plots } in sections.iter().filter(|section| !section.plots.is_empty()) {
            h2 { (title) }
            p { (note) }
            @match &plots[..] {
                [first, more @ ..] if *folded && !more.is_empty() => {
                    (drawn(&[first]))
                    details {
                        summary { (count(more.len(), "more plot")) }
                        (drawn(&more.iter().collect::<Vec<_>>()))
                    }
                }
                all => (drawn(&all.iter().collect::<Vec<_>>())),
            }
        }
        @if let Some(cost) = cost_section::section(configurations) { (cost) }
        h2 { "Configuration and record" }
        @for run in configurations.iter().flat_map(|configuration| &configuration.runs) {
            (html::file(&format!("{}: config.toml", run.name), &run.config_text))
            (html::file(&format!("{}: run.json", run.name), &format!("{:#}", run.record)))
        }
    };
    html::document(&names.join(", "), &body)
}

/// Plots side by side.
fn drawn(plots: &[&(String, Plot)]) -> Markup {
    html! { div.plots { @for (_, plot) in plots { div { (plot.inline()) } } } }
}
