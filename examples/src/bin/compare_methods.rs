//! Runs every learner with every distiller on one configuration, and tabulates the students' accuracy.
//!
//! ```sh
//! cargo run --release -p cdl-examples --bin compare_methods -- configs/preset/fashion_mnist.toml --out runs/methods
//! ```
//!
//! Learners and distillers are the files of `configs/learner` and `configs/distiller`, laid over the configuration. A
//! cell whose run is finished is not run again, so the command can be stopped and repeated.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use cdl_core::{
    Config, Event, Experiment, Summary,
    run_dir::{Results, RunDir, read_results},
};
use clap::Parser;

/// Run every learner with every distiller and tabulate the students' accuracy.
#[derive(Parser)]
struct Args {
    /// What all runs have in common.
    config: PathBuf,
    /// Learners: names of files in configs/learner.
    #[arg(long, value_delimiter = ',', default_value = "l2p,dual_prompt,coda_prompt,apt")]
    learners: Vec<String>,
    /// Distillers: names of files in configs/distiller.
    #[arg(long, value_delimiter = ',', default_value = "none,kd,dkd,fitnets,review_kd,kd_prompts")]
    distillers: Vec<String>,
    /// Seeds; of several the table shows mean and deviation.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    seeds: Vec<u64>,
    /// Override a value in all runs; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Directory for the runs and for table.md.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

fn main() -> Result<()> {
    let args = Args::parse();
    cdl_plugins::link();
    let mut rows = Vec::new();
    for learner in &args.learners {
        let mut row = Vec::new();
        for distiller in &args.distillers {
            let mut runs = Vec::new();
            for &seed in &args.seeds {
                let start = Instant::now();
                let results = cell(&args, learner, distiller, seed)
                    .with_context(|| format!("{learner} with {distiller}, seed {seed}"))?;
                let student = results.student.context("no results of the student")?;
                eprintln!(
                    "{learner} with {distiller}, seed {seed}: {:.1} % ({:.0} s)",
                    student.average_accuracy,
                    start.elapsed().as_secs_f64()
                );
                runs.push((student, results.teacher));
            }
            row.push(runs);
        }
        rows.push(row);
    }
    let table = table(&args, &rows)?;
    let file = args.out.join("table.md");
    fs::write(&file, &table).with_context(|| format!("writing {}", file.display()))?;
    print!("{table}");
    Ok(())
}

/// One run, or its results if it has been finished before.
fn cell(args: &Args, learner: &str, distiller: &str, seed: u64) -> Result<Results> {
    let fragment = |kind: &str, name: &str| Path::new("configs").join(kind).join(format!("{name}.toml"));
    let files = [args.config.clone(), fragment("learner", learner), fragment("distiller", distiller)];
    let mut sets = vec![format!("seed={seed}")];
    // What no distiller looks at need not be trained.
    if distiller == "none" {
        sets.push("train_teacher=false".into());
    }
    sets.extend(args.sets.clone());
    let config = Config::load(&files, &sets)?;
    let dir = args.out.join(format!("{learner}-{distiller}-{seed}"));
    let most = config.run.max_tasks().unwrap_or(usize::MAX);
    let finished = |results: &Results| results.tasks_done >= results.tasks.min(most);
    if let Some(results) = read_results(&dir).ok().filter(finished) {
        let written = fs::read_to_string(dir.join("config.toml"))?;
        ensure!(written == config.to_toml()?, "{} was run with another configuration", dir.display());
        return Ok(results);
    }
    let mut experiment = Experiment::build(&config)?;
    let (record, needed) = (experiment.record(&config)?, experiment.disk_bytes(&config)?);
    let mut directory = RunDir::create(&dir, &config, &record, needed, dir.exists())?;
    let start = Instant::now();
    let mut last = None;
    experiment.trainer.run(experiment.stream.as_ref(), &mut |event| {
        match event {
            Event::Epoch(report) => directory.epoch(report)?,
            Event::Task { task, trainer, results, tested } => {
                let (skipped, seconds) = (experiment.stream.skipped(), start.elapsed().as_secs_f64());
                last = Some(directory.task(task, trainer, results, tested, skipped, seconds)?);
            }
            Event::Step { .. } | Event::Between(_) | Event::Tested => {}
        }
        Ok(())
    })?;
    last.context("the stream has no tasks")
}

/// Runs of one cell, one for each seed.
type Runs = Vec<(Summary, Option<Summary>)>;

/// A number of a run's summary.
type Measure = fn(&Summary) -> f64;

/// Tables of three measures, the teachers' beside the students'.
fn table(args: &Args, rows: &[Vec<Runs>]) -> Result<String> {
    let measures: [(&str, Measure); 3] = [
        ("Average accuracy of the student, %", |s| s.average_accuracy),
        ("Average incremental accuracy of the student, %", |s| s.average_incremental_accuracy),
        ("Forgetting of the student (published definition)", |s| s.forgetting),
    ];
    let mut text = String::new();
    for (title, measure) in measures {
        writeln!(text, "{title}:\n\n| learner | teacher | {} |", args.distillers.join(" | "))?;
        writeln!(text, "|---|{}", "---|".repeat(args.distillers.len() + 1))?;
        for (learner, row) in args.learners.iter().zip(rows) {
            // A teacher does not depend on the distiller: any cell that has one will do.
            let teachers = row.iter().find(|runs| runs.iter().all(|(_, teacher)| teacher.is_some()));
            let teachers = teachers.into_iter().flatten().filter_map(|(_, teacher)| teacher.as_ref());
            let students = row.iter().map(|runs| spread(runs.iter().map(|(student, _)| measure(student))));
            let cells: Vec<String> = std::iter::once(spread(teachers.map(measure))).chain(students).collect();
            writeln!(text, "| {learner} | {} |", cells.join(" | "))?;
        }
        text.push('\n');
    }
    Ok(text)
}

/// Mean, and sample deviation of several values.
fn spread(values: impl Iterator<Item = f64>) -> String {
    let values: Vec<f64> = values.collect();
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    match values.len() {
        0 => "-".into(),
        1 => format!("{mean:.1}"),
        _ => {
            let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (count - 1.0);
            format!("{mean:.1} ± {:.1}", variance.sqrt())
        }
    }
}
