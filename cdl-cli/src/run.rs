//! `cdl run`.

use std::{path::PathBuf, time::Instant};

use cdl_core::{
    Config, Event, Experiment, Role, Skipped,
    run_dir::{Results, RunDir},
};
use clap::Args;

use crate::{ConfigArgs, Failure, emit, first_line, logging::Log, progress::Progress, table};

/// Arguments of `cdl run`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cdl run configs/quickstart.toml
  cdl run configs/quickstart.toml --set seed=2 --run-dir runs/seed-2
  cdl run configs/quickstart.toml configs/baseline/joint.toml
  CDL_OPTIMIZER__LR=0.005 cdl run configs/quickstart.toml

Values come from, lowest first: built-in defaults, the files in order (each after those it `extends`), CDL_...
environment variables, --set. Relative paths inside a configuration are relative to the working directory.")]
pub struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Directory for results [default: one under runs/ named after configuration, seed and time]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Replace the run that the directory holds
    #[arg(long)]
    overwrite: bool,
}

/// Trains, tests and writes results.
pub fn run(args: &RunArgs, log: &Log, quiet: bool) -> Result<(), Failure> {
    let start = Instant::now();
    let config = args.config.load()?;
    let mut experiment = Experiment::build(&config).map_err(Failure::before_writing)?;
    let path = args.run_dir.clone().unwrap_or_else(|| RunDir::default_path(&config));
    let (record, needed) = (experiment.record(&config)?, experiment.disk_bytes()?);
    let mut directory = RunDir::create(&path, &config, &record, needed, args.overwrite)?;
    if let Some(file) = directory.take_log() {
        log.open(file)
            .map_err(|e| Failure { message: format!("{}: log.txt: {e}", path.display()), code: 1 })?;
    }
    introduce(&config, &experiment);

    let progress = Progress::new(log, steps(&experiment), quiet);
    let mut results: Option<Results> = None;
    let mut on = |event: Event<'_>| {
        match event {
            Event::Step { role, task, epoch, .. } => progress.step(role, task, epoch),
            Event::Epoch(report) => {
                progress.epoch(report);
                directory.epoch(report)?;
            }
            Event::Task { task, trainer, results: accuracies } => {
                let (skipped, seconds) = (experiment.stream.skipped(), start.elapsed().as_secs_f64());
                let written = directory.task(task, trainer, accuracies, skipped, seconds)?;
                tell_task(task.index, &written);
                results = Some(written);
            }
        }
        Ok(())
    };
    // A plugin's panic ends the run like an error: the finished tasks stay.
    let done = cdl_core::catch(|| experiment.trainer.run(experiment.stream.as_ref(), &mut on));
    progress.finish();
    let finished = results.as_ref().map_or(0, |results| results.tasks_done);
    done.map_err(|error| Failure {
        message: format!("{}\n{finished} finished task(s) are in {}", first_line(&error), path.display()),
        code: 1,
    })?;
    if let Some(results) = results {
        let mut text = String::new();
        for (title, summary) in [("teacher", &results.teacher), ("student", &results.student)] {
            if let Some(summary) = summary {
                text += &table::accuracies(title, summary);
                text.push('\n');
            }
        }
        let memory = results.peak_memory_bytes.map(|bytes| format!(", {:.0} MB at most", bytes as f64 / 1e6));
        let memory = memory.unwrap_or_default();
        text += &format!("{:.1} s{memory}; results are in {}\n", results.wall_seconds, path.display());
        emit(&text)?;
    }
    Ok(())
}

/// Training steps of the whole run.
fn steps(experiment: &Experiment) -> usize {
    let settings = &experiment.trainer.settings;
    let phases = settings.roles.len();
    let batches = |task: usize| experiment.stream.train_count(task) / settings.batch_size;
    experiment.stream.tasks().iter().map(|task| phases * settings.epochs * batches(task.index)).sum()
}

fn introduce(config: &Config, experiment: &Experiment) {
    let run = &config.run;
    let stream = &experiment.stream;
    let count = |of: &dyn Fn(usize) -> usize| stream.tasks().iter().map(|task| of(task.index)).sum::<usize>();
    tracing::info!(
        "{}: {} classes in {} tasks, {} training and {} test images of {} px",
        run.stream.name,
        stream.classes().len(),
        stream.tasks().len(),
        count(&|task| stream.train_count(task)),
        count(&|task| stream.test_count(task)),
        stream.image_size(),
    );
    if let Some(task) = stream.tasks().iter().find(|task| stream.train_classes(task.index).len() == 1) {
        tracing::warn!(
            "task {} is learned among one class alone: its cross-entropy is zero and nothing is learned from labels",
            task.index + 1
        );
    }
    for &role in &experiment.trainer.settings.roles {
        let network = match role {
            Role::Teacher => &experiment.trainer.teacher,
            Role::Student => &experiment.trainer.student,
        };
        let spec = network.backbone.spec();
        let trained: usize =
            experiment.trainer.trainable(role).iter().map(|var| var.tensor().elem_count()).sum();
        tracing::info!(
            "{}: {} ({} blocks, width {}), learner {}, {} numbers trained",
            role.as_str(),
            spec.provenance.source,
            spec.depth,
            spec.width,
            run.learner(role).0.name,
            trained,
        );
        tracing::debug!(
            "{}: {} with SHA-256 {}, {:?}",
            role.as_str(),
            spec.provenance.file,
            spec.provenance.sha256,
            spec.normalization,
        );
    }
    let distillers: Vec<&str> = run.distillers().iter().map(|section| section.name.as_str()).collect();
    tracing::info!("distiller {}, seed {}", distillers.join(" and "), run.seed);
}

fn tell_task(index: usize, results: &Results) {
    let networks = [("teacher", &results.teacher), ("student", &results.student)];
    let mean = |(name, summary): (&str, &Option<cdl_core::Summary>)| {
        summary.as_ref().map(|s| format!(", {name} {:.2} %", s.average_accuracy))
    };
    let means: String = networks.into_iter().filter_map(mean).collect();
    tracing::info!("task {}/{} done: average accuracy over tasks so far{means}", index + 1, results.tasks);
    let Skipped { train, test } = results.skipped_images;
    if train + test > 0 {
        tracing::warn!("left out so far, since they cannot be read: {train} training and {test} test images");
    }
}
