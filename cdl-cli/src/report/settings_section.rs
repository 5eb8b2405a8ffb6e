//! Head of the page: what was run, and how the runs differ.

use std::collections::BTreeSet;

use maud::{Markup, html};

use super::{
    configuration::{Configuration, is_seed},
    html,
    recorded_run::RecordedRun,
};
use crate::terminal::count;

/// Paragraph for each configuration, with its runs, and a warning if accuracies of the configurations cannot be
/// compared.
pub fn head(configurations: &[Configuration]) -> Markup {
    html! {
        @for configuration in configurations {
            @let Configuration { name, first, runs } = configuration;
            @if configuration.is_repeated() {
                p { b { (name) } ": " (first.setup()) }
                details {
                    summary { (count(runs.len(), "run")) ", averaged below" }
                    @for run in runs { p { (run.name) ": " (run.course()) } }
                }
            } @else {
                p { b { (name) } ": " (first.setup()) ", " (first.course()) }
            }
        }
        @for warning in warnings(configurations) { p.warning { strong { "Warning: " } (warning) } }
    }
}

/// Sentences about differences that make accuracies incomparable: data and epochs.
fn warnings(configurations: &[Configuration]) -> Vec<String> {
    let runs: Vec<&RecordedRun> = configurations.iter().map(|configuration| configuration.first).collect();
    let differing = differing(&runs);
    // `stream.input` is about reading the images.
    let is_data =
        |key: &&String| key.starts_with("stream.") && !key.starts_with("stream.input.") && !is_seed(key);
    let keys: Vec<&str> = differing.iter().filter(is_data).map(String::as_str).collect();
    let mut warnings = Vec::new();
    if !keys.is_empty() {
        let verb = if keys.len() == 1 { "differs" } else { "differ" };
        warnings.push(format!("the runs do not use the same data ({} {verb}).", keys.join(", ")));
    } else if runs.iter().any(|run| Some(run.data_sums()) != runs.first().map(|first| first.data_sums())) {
        warnings.push("the runs do not use the same data (the files of the data set differ).".into());
    }
    if differing.contains("epochs") {
        let epochs: Vec<String> = runs.iter().filter_map(|run| run.values().remove("epochs")).collect();
        let epochs = match &epochs[..] {
            [first @ .., last] if !first.is_empty() => format!("{} and {last}", first.join(", ")),
            _ => epochs.join(", "),
        };
        warnings.push(format!("the runs are not trained for the same number of epochs ({epochs})."));
    }
    warnings
}

/// Keys of the settings that differ between runs.
fn differing(runs: &[&RecordedRun]) -> BTreeSet<String> {
    let all: Vec<_> = runs.iter().map(|run| run.values()).collect();
    let keys: BTreeSet<&String> = all.iter().flat_map(|values| values.keys()).collect();
    let differs = |key: &&&String| {
        let values: BTreeSet<Option<&String>> = all.iter().map(|values| values.get(**key)).collect();
        values.len() > 1
    };
    keys.iter().filter(differs).map(|key| key.to_string()).collect()
}

/// Table of the settings that differ between runs, with a column for each configuration; `None` if there are none.
pub fn differences(configurations: &[Configuration]) -> Option<Markup> {
    let runs: Vec<&RecordedRun> =
        configurations.iter().flat_map(|configuration| configuration.runs.iter().copied()).collect();
    let keys = differing(&runs);
    if keys.is_empty() {
        return None;
    }
    // Different values of the runs of a configuration, in the order of the runs.
    let shown = |configuration: &Configuration, key: &str| {
        let mut values: Vec<String> = Vec::new();
        for run in &configuration.runs {
            let value = run.values().remove(key).unwrap_or_else(|| "–".into());
            if !values.contains(&value) {
                values.push(value);
            }
        }
        values.join(", ")
    };
    let head = html! { th { "Key" } @for configuration in configurations { th { (configuration.name) } } };
    let rows = html! {
        @for key in &keys {
            tr {
                td.key { code { (html::breakable(key)) } }
                @for configuration in configurations { td { code { (shown(configuration, key)) } } }
            }
        }
    };
    Some(html! { h2 { "Settings that differ" } (html::table(&head, &rows)) })
}
