//! What runs and sweeps of ours came to, and with which settings.

use std::{
    fs,
    path::{Path, PathBuf},
};

use cdl_core::{
    DEFINITIONS, Role,
    run_dir::{read_confusion, read_record, read_results},
};
use serde_json::{Value, json};

use super::published::{NOTHING, Published, Subject};
use crate::{
    Failure,
    sweep::{Spread, Summary, Sweep, is_sweep, summary_of},
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
    facts: Facts,
}

/// What a run directory says about how the run was made.
struct Facts {
    config: Value,
    record: Value,
    results: Value,
}

impl Facts {
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
    /// The value of a published setting in this run; null where it has none.
    pub fn value(&self, keys: &str) -> Value {
        self.facts.get(keys, self.role)
    }
}

/// Every network of the run or sweep in `root`.
pub fn read(root: &Path, published: &Published) -> Result<Vec<Ours>, Failure> {
    let title = root.display().to_string();
    if !is_sweep(root) {
        return networks(&title, &[root.to_path_buf()], published);
    }
    let mut all = Vec::new();
    for combination in Summary::read(&Sweep::read(root)?)?.combinations {
        let done = combination.cells.iter().filter(|cell| cell.results.is_some());
        let roots: Vec<PathBuf> = done.map(|cell| cell.root.clone()).collect();
        let title = format!("{title}, {}", combination.title());
        match roots.is_empty() {
            true => tracing::warn!("{title}: no cell is done yet"),
            false => all.extend(networks(&title, &roots, published)?),
        }
    }
    Ok(all)
}

/// Every network of runs that differ in what is repeated alone.
fn networks(title: &str, roots: &[PathBuf], published: &Published) -> Result<Vec<Ours>, Failure> {
    let results = roots.iter().map(|root| read_results(root)).collect::<Result<Vec<_>, _>>()?;
    let configs = roots.iter().map(|root| config(root)).collect::<Result<Vec<_>, _>>()?;
    let seeds: Vec<String> = configs.iter().map(|config| config["seed"].to_string()).collect();
    let mut networks = Vec::new();
    let (Some(root), Some(config)) = (roots.first(), configs.first()) else { return Ok(networks) };
    for role in [Role::Student, Role::Teacher] {
        let spread = |at: usize| {
            let value = |results| (DEFINITIONS.get(at)?.value)(summary_of(results, role)?);
            Spread::of(&results.iter().filter_map(value).collect::<Vec<_>>())
        };
        let (Some(accuracy), Some(forgetting)) = (spread(0), spread(1)) else { continue };
        let confusion = read_confusion(root, role)?;
        let images = confusion.map(|confusion| confusion.counts().iter().flatten().sum::<u64>());
        let word = if seeds.len() == 1 { "seed" } else { "seeds" };
        let facts = Facts {
            config: config.clone(),
            record: read_record(root)?,
            results: json!({
                "seeds": format!("{} ({word} {})", seeds.len(), seeds.join(", ")),
                "tasks_done": results.iter().map(|results| results.tasks_done).min(),
                "test_images": images,
            }),
        };
        let subject = subject(&facts, role, published);
        networks.push(Ours { title: title.into(), role, subject, accuracy, forgetting, facts });
    }
    Ok(networks)
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
