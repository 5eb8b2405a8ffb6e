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

use anyhow::{Context, Result};
use cdl_core::{
    Config, Event, Experiment,
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
    /// Seeds; the table shows the mean.
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
    let dir = args.out.join(format!("{learner}-{distiller}-{seed}"));
    if let Some(results) = read_results(&dir).ok().filter(|results| results.tasks_done == results.tasks) {
        return Ok(results);
    }
    let fragment = |kind: &str, name: &str| Path::new("configs").join(kind).join(format!("{name}.toml"));
    let files = [args.config.clone(), fragment("learner", learner), fragment("distiller", distiller)];
    let mut sets = vec![format!("seed={seed}")];
    // What no distiller looks at need not be trained.
    if distiller == "none" {
        sets.push("train_teacher=false".into());
    }
    sets.extend(args.sets.clone());
    let config = Config::load(&files, &sets)?;
    let mut experiment = Experiment::build(&config)?;
    let (record, needed) = (experiment.record(&config), experiment.disk_bytes()?);
    let mut directory = RunDir::create(&dir, &config, &record, needed, dir.exists())?;
    let start = Instant::now();
    let mut last = None;
    experiment.trainer.run(experiment.stream.as_ref(), &mut |event| {
        match event {
            Event::Epoch(report) => directory.epoch(report)?,
            Event::Task { task, trainer, results } => {
                last = Some(directory.task(task, trainer, results, start.elapsed().as_secs_f64())?);
            }
            Event::Step { .. } => {}
        }
        Ok(())
    })?;
    last.context("the stream has no tasks")
}

type Runs = Vec<(cdl_core::Summary, Option<cdl_core::Summary>)>;

/// Published average accuracy and forgetting, means over seeds; the teacher's beside them.
fn table(args: &Args, rows: &[Vec<Runs>]) -> Result<String> {
    let mut text = String::new();
    let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
    let cell = |of: &dyn Fn(&cdl_core::Summary) -> f64, runs: &Runs| {
        format!("{:.1}", mean(runs.iter().map(|(student, _)| of(student)).collect()))
    };
    for (title, of) in [
        (
            "Average accuracy of the student, %",
            &(|s: &cdl_core::Summary| s.average_accuracy) as &dyn Fn(&_) -> f64,
        ),
        ("Average incremental accuracy of the student, %", &|s: &cdl_core::Summary| {
            s.average_incremental_accuracy
        }),
        ("Forgetting of the student (published definition)", &|s: &cdl_core::Summary| s.forgetting),
    ] {
        writeln!(text, "{title}:\n\n| learner | teacher | {} |", args.distillers.join(" | "))?;
        writeln!(text, "|---|{}", "---|".repeat(args.distillers.len() + 1))?;
        for (learner, row) in args.learners.iter().zip(rows) {
            let teachers: Vec<f64> =
                row.iter().flatten().filter_map(|(_, teacher)| teacher.as_ref()).map(of).collect();
            let teacher = if teachers.is_empty() { "-".into() } else { format!("{:.1}", mean(teachers)) };
            let cells: Vec<String> = row.iter().map(|runs| cell(of, runs)).collect();
            writeln!(text, "| {learner} | {teacher} | {} |", cells.join(" | "))?;
        }
        text.push('\n');
    }
    Ok(text)
}
