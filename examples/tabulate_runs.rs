//! Prints a Markdown table of runs, one row a distiller, with mean and sample deviation over its runs.
//!
//! ```sh
//! cargo run --release -p cdl-examples --bin tabulate_runs -- runs/fashion/*
//! ```

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde::Deserialize;

/// Print a table of runs.
#[derive(Parser)]
struct Args {
    /// Directories of runs.
    #[arg(required = true)]
    runs: Vec<PathBuf>,
}

/// The part of config.toml that names the row.
#[derive(Deserialize)]
struct Config {
    distiller: Named,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

/// The part of results.json that is tabulated, in percent.
#[derive(Deserialize)]
struct Results {
    student: Summary,
    tasks_done: usize,
    tasks: usize,
}

#[derive(Deserialize)]
struct Summary {
    average_accuracy: f64,
    average_incremental_accuracy: f64,
    forgetting: f64,
}

fn main() -> Result<()> {
    let mut rows: BTreeMap<String, Vec<Summary>> = BTreeMap::new();
    for run in &Args::parse().runs {
        let read = |name: &str| {
            let file = run.join(name);
            fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))
        };
        let config: Config = toml::from_str(&read("config.toml")?).context("config.toml")?;
        let results: Results = serde_json::from_str(&read("results.json")?).context("results.json")?;
        ensure!(
            results.tasks_done == results.tasks,
            "{} has finished {} of {} tasks",
            run.display(),
            results.tasks_done,
            results.tasks
        );
        rows.entry(config.distiller.name).or_default().push(results.student);
    }
    println!("| distiller | runs | average accuracy | average incremental accuracy | forgetting |");
    println!("|---|---|---|---|---|");
    for (name, runs) in &rows {
        let cell = |value: fn(&Summary) -> f64| spread(&runs.iter().map(value).collect::<Vec<_>>());
        println!(
            "| {name} | {} | {} | {} | {} |",
            runs.len(),
            cell(|s| s.average_accuracy),
            cell(|s| s.average_incremental_accuracy),
            cell(|s| s.forgetting),
        );
    }
    Ok(())
}

/// Mean and sample deviation in words.
fn spread(values: &[f64]) -> String {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    if values.len() < 2 {
        return format!("{mean:.1}");
    }
    let deviation = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (count - 1.0)).sqrt();
    format!("{mean:.1} ± {deviation:.1}")
}
