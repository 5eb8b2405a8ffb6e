//! Results of runs and sweeps, and the settings they were made with.

use std::path::Path;

use cdl_core::{metrics::DEFINITIONS, traits::Role};
use serde::Serialize;
use serde_json::{Value, json};

use super::published::{NOTHING, Published, Subject, shown};
use crate::{
    failure::{Failure, first_line},
    report::recorded_run::{ROLES, RecordedRun},
    sweep::{layout::is_sweep, statistics::Spread, summary::Summary},
};

/// One network of a run, or of all repetitions of a sweep's combination.
#[derive(Serialize)]
pub struct Ours {
    /// Name of the run or combination.
    pub run: String,
    /// Network of it.
    #[serde(rename = "network")]
    pub role: Role,
    /// Names that rows of the table are found by.
    pub subject: Subject,
    /// Average accuracy in percent.
    pub average_accuracy: Spread,
    /// Forgetting in percent.
    pub forgetting: Spread,
    /// Settings of each run.
    #[serde(skip)]
    made: Vec<Value>,
}

impl Ours {
    /// Value of a published setting: null where the runs have none, all of them where they differ.
    pub fn value(&self, keys: &str) -> Value {
        in_common(self.made.iter().map(|made| get(made, keys, self.role)))
    }
}

/// The one value of all runs, or all values in words.
fn in_common(of_runs: impl Iterator<Item = Value>) -> Value {
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

/// Value at the first of several keys (`|`) that has one. A key with a leading `/` is a JSON pointer into the record.
fn get(made: &Value, keys: &str, role: Role) -> Value {
    let of = |key: &str| match key.starts_with('/') {
        true => made["run.json"].pointer(key).cloned(),
        false => made.pointer(&format!("/{}", key.replace('.', "/"))).cloned(),
    };
    let keys = keys.replace("{role}", role.as_str());
    keys.split('|').filter_map(of).find(|value| !value.is_null()).unwrap_or(Value::Null)
}

/// Reads every network of the run or sweep in `root`.
pub fn read(root: &Path, published: &Published) -> Result<Vec<Ours>, Failure> {
    let title = root.display().to_string();
    if !is_sweep(root) {
        return Ok(networks(&title, &[RecordedRun::tested(root)?], published));
    }
    let mut all = Vec::new();
    for combination in Summary::of_folder(root)?.combinations {
        let title = format!("{title}, {}", combination.title());
        let mut runs = Vec::new();
        for cell in combination.cells.iter().filter(|cell| cell.results.is_some()) {
            match RecordedRun::tested(&cell.root) {
                Ok(run) => runs.push(run),
                // A run that cannot be read must not keep the others from being compared.
                Err(error) => tracing::warn!("{title}: left out: {}", first_line(&error)),
            }
        }
        match runs.is_empty() {
            true => tracing::warn!("{title}: no cell is done yet"),
            false => all.extend(networks(&title, &runs, published)),
        }
    }
    Ok(all)
}

/// Networks of repetitions.
fn networks(title: &str, runs: &[RecordedRun], published: &Published) -> Vec<Ours> {
    let seed = |run: &RecordedRun| run.config.get("seed").map_or("?".into(), toml::Value::to_string);
    let seeds: Vec<String> = runs.iter().map(seed).collect();
    let word = if seeds.len() == 1 { "seed" } else { "seeds" };
    let seeds = format!("{} ({word} {})", seeds.len(), seeds.join(", "));
    let network = |role: Role| {
        let spread = |at: usize| {
            let value = |run: &RecordedRun| (DEFINITIONS.get(at)?.value)(run.results.of(role)?);
            Spread::of(&runs.iter().filter_map(value).collect::<Vec<_>>())
        };
        let (average_accuracy, forgetting) = (spread(0)?, spread(1)?);
        let made: Vec<Value> = runs.iter().map(|run| made(run, role, &seeds)).collect();
        let subject = subject(made.first()?, role, published);
        Some(Ours { run: title.into(), role, subject, average_accuracy, forgetting, made })
    };
    ROLES.into_iter().filter_map(network).collect()
}

/// Configuration of a run with its record and results. A list of one distiller is that distiller.
fn made(run: &RecordedRun, role: Role, seeds: &str) -> Value {
    let mut made = json!(run.config);
    if let Some([only]) = made["distillers"].as_array().map(Vec::as_slice) {
        made["distiller"] = only.clone();
    }
    let confusion = run.confusions.of(role).as_ref();
    let images: Option<u64> = confusion.map(|confusion| confusion.counts().iter().flatten().sum());
    made["results"] = json!({ "seeds": seeds, "tasks_done": run.results.tasks_done, "test_images": images });
    made["run.json"] = run.record.clone();
    made
}

/// Subject of the network `role` of a run. A teacher learns as a single network does.
fn subject(made: &Value, role: Role, published: &Published) -> Subject {
    let word = |value: &Value| value.as_str().unwrap_or("?").to_string();
    let network = |role: Role| {
        let of = |part: &str| get(made, &format!("/{{role}}/{part}"), role).to_string();
        format!("{}x{}", of("width"), of("depth"))
    };
    let several: Vec<String> =
        made["distillers"].as_array().into_iter().flatten().map(|one| word(&one["name"])).collect();
    let distiller = match role {
        Role::Teacher => published.alone(),
        Role::Student if several.is_empty() => word(&made["distiller"]["name"]),
        Role::Student => several.join(" and "),
    };
    let teacher = if distiller == published.alone() { NOTHING.into() } else { network(Role::Teacher) };
    let tasks = made["run.json"]["tasks"].as_array().map_or(0, Vec::len);
    let learner = word(&get(made, "{role}.learner.name|learner.name", role));
    Subject([word(&made["stream"]["name"]), teacher, network(role), learner, distiller, tasks.to_string()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_in_which_runs_differ_has_all_their_values() {
        let of = |values: [Value; 3]| in_common(values.into_iter());
        assert_eq!(of([5.into(), 20.into(), 5.into()]), "5 and 20");
        assert_eq!(of([1.into(), 1.into(), 1.into()]), 1);
        assert_eq!(of([Value::Null, Value::Null, Value::Null]), Value::Null);
    }
}
