//! What runs and sweeps of ours came to, and with which settings.

use std::{
    fs,
    path::{Path, PathBuf},
};

use cdl_core::{
    ByRole, DEFINITIONS, Role,
    run_dir::{Results, read_confusion, read_record, read_results},
};
use serde_json::{Value, json};

use super::published::{NOTHING, Published, Subject};
use crate::{
    failure::Failure,
    sweep::{
        layout::is_sweep,
        statistics::Spread,
        summary::{Summary, summary_of},
    },
};

/// One network of a run, or of all repetitions of a sweep's combination.
pub struct Ours {
    /// Where it comes from.
    pub title: String,
    /// Which network of it.
    pub role: Role,
    /// What it is about.
    pub subject: Subject,
    /// Of the published definition, in percent.
    pub accuracy: Spread,
    /// Of the published definition, in percent.
    pub forgetting: Spread,
    /// Of each run that it is the mean of.
    facts: Vec<Facts>,
}

/// What a run directory says about how the run was made.
struct Facts {
    config: Value,
    record: Value,
    results: Value,
}

impl Facts {
    fn of(run: &Made, role: Role, seeds: &str) -> Self {
        let (done, images) = (run.results.tasks_done, run.images.of(role));
        let results = json!({ "seeds": seeds, "tasks_done": done, "test_images": images });
        Self { config: run.config.clone(), record: run.record.clone(), results }
    }

    /// The value at the first of several keys (`|`) that has one; of a JSON pointer in the record.
    fn get(&self, keys: &str, role: Role) -> Value {
        let of = |key: &str| match key.strip_prefix("results.") {
            _ if key.starts_with('/') => self.record.pointer(key).cloned(),
            Some(key) => self.results.get(key).cloned(),
            None => key.split('.').try_fold(&self.config, |value, part| value.get(part)).cloned(),
        };
        let keys = keys.replace("{role}", role.as_str());
        keys.split('|').filter_map(of).find(|value| !value.is_null()).unwrap_or(Value::Null)
    }
}

impl Ours {
    /// The value of a published setting; null where it has none, and all of them where the runs have different ones.
    pub fn value(&self, keys: &str) -> Value {
        let mut values: Vec<Value> = Vec::new();
        for value in self.facts.iter().map(|facts| facts.get(keys, self.role)) {
            if !values.contains(&value) {
                values.push(value);
            }
        }
        match values.len() {
            0 | 1 => values.pop().unwrap_or(Value::Null),
            _ => values.iter().map(super::show::shown).collect::<Vec<_>>().join(" and ").into(),
        }
    }
}

/// Every network of the run or sweep in `root`.
pub fn read(root: &Path, published: &Published) -> Result<Vec<Ours>, Failure> {
    let title = root.display().to_string();
    if !is_sweep(root) {
        return Ok(networks(&title, &[Made::read(root)?], published));
    }
    let mut all = Vec::new();
    for combination in Summary::of_folder(root)?.combinations {
        let title = format!("{title}, {}", combination.title());
        let done = combination.cells.iter().filter(|cell| cell.results.is_some());
        // Of many runs, one that cannot be read is no reason to go without the others.
        let made = |root: &PathBuf| {
            Made::read(root).map_err(|failure| {
                tracing::warn!("{title}: left out: {}", failure.message);
            })
        };
        let runs: Vec<Made> = done.filter_map(|cell| made(&cell.root).ok()).collect();
        match runs.is_empty() {
            true => tracing::warn!("{title}: no cell is done yet"),
            false => all.extend(networks(&title, &runs, published)),
        }
    }
    Ok(all)
}

/// What a run directory holds.
struct Made {
    config: Value,
    record: Value,
    results: Results,
    /// Test images of each network's confusion matrix.
    images: ByRole<u64>,
}

impl Made {
    fn read(root: &Path) -> Result<Self, Failure> {
        let mut images = ByRole::default();
        let results = read_results(root)?;
        for role in [Role::Student, Role::Teacher] {
            if let Some(confusion) = read_confusion(root, role)? {
                images.set(role, confusion.counts().iter().flatten().sum());
            }
        }
        Ok(Self { config: config(root)?, record: read_record(root)?, results, images })
    }
}

/// Every network of runs that differ in what is repeated alone.
fn networks(title: &str, runs: &[Made], published: &Published) -> Vec<Ours> {
    let seeds: Vec<String> = runs.iter().map(|run| run.config["seed"].to_string()).collect();
    let word = if seeds.len() == 1 { "seed" } else { "seeds" };
    let seeds = format!("{} ({word} {})", seeds.len(), seeds.join(", "));
    let mut networks = Vec::new();
    for role in [Role::Student, Role::Teacher] {
        let spread = |at: usize| {
            let value = |run: &Made| (DEFINITIONS.get(at)?.value)(summary_of(&run.results, role)?);
            Spread::of(&runs.iter().filter_map(value).collect::<Vec<_>>())
        };
        let (Some(accuracy), Some(forgetting)) = (spread(0), spread(1)) else { continue };
        let facts: Vec<Facts> = runs.iter().map(|run| Facts::of(run, role, &seeds)).collect();
        let Some(first) = facts.first() else { continue };
        let subject = subject(first, role, published);
        networks.push(Ours { title: title.into(), role, subject, accuracy, forgetting, facts });
    }
    networks
}

/// The configuration of a run; a list of one distiller is that distiller.
fn config(root: &Path) -> Result<Value, Failure> {
    let file = root.join("config.toml");
    let fail = |reason: String| Failure::mistake(format!("{}: {reason}", file.display()));
    let text = fs::read_to_string(&file).map_err(|e| fail(format!("{e}; is it a run?")))?;
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| fail(e.message().into()))?;
    let mut config = serde_json::to_value(table).map_err(|e| fail(e.to_string()))?;
    if let Some([only]) = config["distillers"].as_array().map(Vec::as_slice) {
        config["distiller"] = only.clone();
    }
    Ok(config)
}

/// What the network `role` of a run is about. A teacher learns as a single network does.
fn subject(facts: &Facts, role: Role, published: &Published) -> Subject {
    let word = |value: Value| value.as_str().unwrap_or("?").to_string();
    let network = |role: Role| {
        let of = |part: &str| facts.get(&format!("/{{role}}/{part}"), role).to_string();
        format!("{}x{}", of("width"), of("depth"))
    };
    let several: Vec<String> = (facts.config["distillers"].as_array().into_iter().flatten())
        .map(|one| word(one["name"].clone()))
        .collect();
    let distiller = match (role, several.len()) {
        (Role::Teacher, _) => published.alone(),
        (Role::Student, 0..=1) => word(facts.get("distiller.name", role)),
        (Role::Student, _) => several.join(" and "),
    };
    let teacher = if distiller == published.alone() { NOTHING.into() } else { network(Role::Teacher) };
    let tasks = facts.record["tasks"].as_array().map_or(0, Vec::len);
    [
        word(facts.get("stream.name", role)),
        teacher,
        network(role),
        word(facts.get("{role}.learner.name|learner.name", role)),
        distiller,
        tasks.to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_in_which_runs_differ_has_all_their_values() {
        let facts = |epochs: u64| Facts {
            config: json!({ "epochs": epochs, "seed": 1 }),
            record: Value::Null,
            results: Value::Null,
        };
        let spread = Spread::of(&[1.0, 2.0, 3.0]).expect("values");
        let ours = Ours {
            title: "sweep".into(),
            role: Role::Student,
            subject: Subject::default(),
            accuracy: spread,
            forgetting: spread,
            facts: vec![facts(5), facts(20), facts(5)],
        };
        assert_eq!(ours.value("epochs"), "5 and 20");
        assert_eq!(ours.value("seed"), 1);
        assert_eq!(ours.value("batch_size"), Value::Null);
    }
}
