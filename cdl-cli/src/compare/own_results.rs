//! Results of runs and sweeps, and the settings that produced them.

use std::path::Path;

use cdl_core::{metrics, traits::Role};
use serde::Serialize;
use serde_json::{Value, json};

use super::published::{NONE, Published, Subject, shown};
use crate::{
    failure::{Failure, first_line},
    report::recorded_run::{ROLES, RecordedRun},
    statistics::Spread,
    sweep::{layout::is_sweep, summary::Summary},
};

/// Results of one network of a run, or of all repetitions of a combination of a sweep.
#[derive(Serialize)]
pub struct OwnResults {
    /// Name of the run or combination.
    pub run: String,
    /// Role of the network.
    #[serde(rename = "network")]
    pub role: Role,
    /// Subject, by which the matching published rows are found.
    pub subject: Subject,
    /// Average accuracy in percent.
    pub average_accuracy: Spread,
    /// Forgetting in percent.
    pub forgetting: Spread,
    /// Share of all test images that are classified correctly, in percent: the "top-1" of other projects.
    pub accuracy_over_images: Option<Spread>,
    /// Settings of each run.
    #[serde(skip)]
    settings: Vec<Value>,
}

impl OwnResults {
    /// Own value of a setting of the published table: the first of its `keys` (separated by `|`) that has a value. Null
    /// if the runs have none; a text with all values if they differ.
    pub fn value(&self, keys: &str) -> Value {
        merged(self.settings.iter().map(|settings| get(settings, keys, self.role)))
    }
}

/// Returns the common value of all runs, or a text with all values.
fn merged(of_runs: impl Iterator<Item = Value>) -> Value {
    let mut values: Vec<Value> = Vec::new();
    for value in of_runs {
        if !values.contains(&value) {
            values.push(value);
        }
    }
    match &values[..] {
        [only] => only.clone(),
        _ => values.iter().map(shown).collect::<Vec<_>>().join(" and ").into(),
    }
}

/// Returns the value of the first key that has one. Keys are separated by `|`; a key with a leading `/` is a JSON
/// pointer into `run.json`.
fn get(settings: &Value, keys: &str, role: Role) -> Value {
    let of = |key: &str| match key.starts_with('/') {
        true => settings["run.json"].pointer(key).cloned(),
        false => settings.pointer(&format!("/{}", key.replace('.', "/"))).cloned(),
    };
    let keys = keys.replace("{role}", role.as_str());
    keys.split('|').filter_map(of).find(|value| !value.is_null()).unwrap_or(Value::Null)
}

/// Reads every network of the run or sweep in `root`.
pub fn read(root: &Path, published: &Published) -> Result<Vec<OwnResults>, Failure> {
    let title = root.display().to_string();
    if !is_sweep(root) {
        return Ok(networks(&title, &[RecordedRun::with_results(root)?], published));
    }
    let mut all = Vec::new();
    for combination in Summary::of_folder(root)?.combinations {
        let title = format!("{title}, {}", combination.title());
        let mut runs = Vec::new();
        for cell in combination.cells.iter().filter(|cell| cell.results.is_some()) {
            match RecordedRun::with_results(&cell.root) {
                Ok(run) => runs.push(run),
                // An unreadable run must not prevent the comparison of the others.
                Err(error) => tracing::warn!("{title}: run skipped: {}", first_line(&error)),
            }
        }
        match runs.is_empty() {
            true => tracing::warn!("{title}: no cell is done yet"),
            false => all.extend(networks(&title, &runs, published)),
        }
    }
    Ok(all)
}

/// Results of each network over the repetitions `runs`.
fn networks(title: &str, runs: &[RecordedRun], published: &Published) -> Vec<OwnResults> {
    let seed = |run: &RecordedRun| run.config.get("seed").map_or("?".into(), toml::Value::to_string);
    let seeds: Vec<String> = runs.iter().map(seed).collect();
    let word = if seeds.len() == 1 { "seed" } else { "seeds" };
    let seeds = format!("{} ({word} {})", seeds.len(), seeds.join(", "));
    let network = |role: Role| {
        let spread = |value: fn(&metrics::Summary) -> Option<f64>| {
            Spread::of(&runs.iter().filter_map(|run| value(run.results.of(role)?)).collect::<Vec<_>>())
        };
        let average_accuracy = spread(|summary| Some(summary.average_accuracy))?;
        let forgetting = spread(|summary| Some(summary.forgetting))?;
        let accuracy_over_images = spread(|summary| summary.accuracy_over_images);
        let settings: Vec<Value> = runs.iter().map(|run| settings(run, role, &seeds)).collect();
        let subject = subject(settings.first()?, role, published);
        let run = title.into();
        Some(OwnResults { run, role, subject, average_accuracy, forgetting, accuracy_over_images, settings })
    };
    ROLES.into_iter().filter_map(network).collect()
}

/// Configuration of a run with its record and results. A list of one distiller is replaced by that distiller.
fn settings(run: &RecordedRun, role: Role, seeds: &str) -> Value {
    let mut settings = json!(run.config);
    if let Some([only]) = settings["distillers"].as_array().map(Vec::as_slice) {
        settings["distiller"] = only.clone();
    }
    let confusion = run.confusions.of(role).as_ref();
    let images: Option<u64> = confusion.map(|confusion| confusion.counts().iter().flatten().sum());
    settings["results"] =
        json!({ "seeds": seeds, "tasks_done": run.results.tasks_done, "test_images": images });
    settings["run.json"] = run.record.clone();
    settings
}

/// Subject of the network `role` of a run. A teacher counts as a single network.
fn subject(settings: &Value, role: Role, published: &Published) -> Subject {
    let word = |value: &Value| value.as_str().unwrap_or("?").to_string();
    let network = |role: Role| {
        let of = |part: &str| get(settings, &format!("/{{role}}/{part}"), role).to_string();
        format!("{}x{}", of("width"), of("depth"))
    };
    let several: Vec<String> =
        settings["distillers"].as_array().into_iter().flatten().map(|one| word(&one["name"])).collect();
    let distiller = match role {
        Role::Teacher => published.alone(),
        Role::Student if several.is_empty() => word(&settings["distiller"]["name"]),
        Role::Student => several.join(" and "),
    };
    let teacher = if distiller == published.alone() { NONE.into() } else { network(Role::Teacher) };
    let tasks = settings["run.json"]["tasks"].as_array().map_or(0, Vec::len);
    let learner = word(&get(settings, "{role}.learner.name|learner.name", role));
    Subject([
        word(&settings["stream"]["name"]),
        teacher,
        network(role),
        learner,
        distiller,
        tasks.to_string(),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_differ_between_runs_show_all_values() {
        let of = |values: [Value; 3]| merged(values.into_iter());
        assert_eq!(of([5.into(), 20.into(), 5.into()]), "5 and 20");
        assert_eq!(of([1.into(), 1.into(), 1.into()]), 1);
        assert_eq!(of([Value::Null, Value::Null, Value::Null]), Value::Null);
    }
}
