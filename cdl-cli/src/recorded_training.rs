//! The training of a run, from its beginning or from where it was stopped.

use std::{path::Path, time::Instant};

use cdl_core::{
    config::Config,
    error::Error,
    run::{
        Experiment,
        directory::{Results, RunDir},
    },
    train::{Event, Position, RunState},
    traits::{BackboneSpec, Provenance, Skipped, Task},
};

use crate::{
    failure::{Failure, first_line},
    logging::Log,
    progress::Progress,
    report::recorded_run::peak_memory,
    signals::Signals,
    tensorboard::EventFiles,
    terminal::{accuracies, averages, count, emit, shell},
};

/// A run that is ready to train.
pub struct Training {
    /// Networks, methods and images, as they were where it goes on.
    pub experiment: Experiment,
    pub directory: RunDir,
    /// State that it continues from.
    pub from: RunState,
    /// Seconds that it took until then.
    pub spent: f64,
    /// Time at which this process took it up.
    pub start: Instant,
}

impl Training {
    /// Trains, tests, writes results and saves the run so that it can go on after a stop.
    pub fn run(self, config: &Config, log: &Log) -> Result<(), Failure> {
        let Self { mut experiment, mut directory, from, spent, start } = self;
        let path = directory.path().to_path_buf();
        if let Some(file) = directory.take_log() {
            log.open(file).map_err(|e| Failure::working(format!("{}: log.txt: {e}", path.display())))?;
        }
        introduce(config, &experiment);
        let signals = Signals::listen()?;
        let events = || EventFiles::begin(directory.path(), from.position.task);
        let mut events = config.run.record.tensorboard.then(events).transpose()?;
        let (progress, seconds) =
            (progress(&experiment, &from, log), || spent + start.elapsed().as_secs_f64());
        let mut finished = from.position.task;
        let mut results: Option<Results> = None;
        let stream = experiment.stream.as_ref();
        let mut on = |event: Event<'_>| {
            match event {
                Event::Step { role, task, epoch, step } => progress.step(role, task, epoch, step),
                Event::Epoch(report) => {
                    progress.epoch(report);
                    directory.epoch(report)?;
                    events.as_mut().map_or(Ok(()), |events| events.epoch(report))?;
                }
                Event::Task { task, trainer, results: accuracies, tested } => {
                    let skipped = stream.skipped();
                    // Before the results, which say that the task is done: a run killed in between goes on from a
                    // checkpoint and writes its events anew.
                    events.as_mut().map_or(Ok(()), |events| events.task(task.index, accuracies))?;
                    let written = directory.task(task, trainer, accuracies, tested, skipped, seconds())?;
                    tell_task(task.index, &written);
                    finished = written.tasks_done;
                    results = Some(written);
                }
                Event::Between(moment) if moment.state.position.task < stream.tasks().len() => {
                    let stop = signals.asked().is_some();
                    directory.checkpoint(&moment, stop, seconds())?;
                    if stop {
                        return Err(Error::Stopped);
                    }
                }
                // What was done before the test is saved already.
                Event::TestBatch if signals.asked().is_some() => return Err(Error::Stopped),
                Event::Between(_) | Event::TestBatch => {}
            }
            Ok(())
        };
        // A plugin's panic ends the run like an error: the finished tasks stay.
        let done = cdl_core::registry::catch(|| experiment.trainer.run_from(from, stream, &mut on));
        progress.finish();
        done.map_err(|error| failure(&error, &signals, finished, &path, directory.writes_checkpoints()))?;
        // The results are there whatever becomes of files that nobody needs any more.
        if let Err(error) = directory.finish() {
            tracing::warn!("checkpoints of a finished run could not be removed: {}", first_line(&error));
        }
        results.map_or(Ok(()), |results| emit(&summary(&results, &path)))
    }
}

/// Failure of a run that broke off or was asked to stop, with the command that continues it.
fn failure(error: &Error, signals: &Signals, finished: usize, path: &Path, kept: bool) -> Failure {
    let again = format!("go on with: cdl resume {}", shell(path));
    match (error, signals.asked()) {
        (Error::Stopped, Some((signal, code))) => {
            let saved = if kept { "saved" } else { "not saved, since `checkpoint.off = true`" };
            Failure { message: format!("stopped by {signal} and {saved}; {again}"), code }
        }
        _ => {
            let mut message = format!(
                "{}\n{} saved in {}",
                first_line(error),
                count(finished, "finished task"),
                path.display()
            );
            // Numbers that have left all bounds would do so again, and a mended plugin is another plugin.
            if !matches!(error, Error::NotFinite { .. } | Error::Panicked { .. }) {
                message += &format!("; when this is mended, {again}");
            }
            Failure::working(message)
        }
    }
}

/// The bar, as far as the run has come.
fn progress(experiment: &Experiment, from: &RunState, log: &Log) -> Progress {
    let settings = &experiment.trainer.settings;
    let batches = |task: usize| experiment.stream.train_count(task) / settings.batch_size;
    let before = |position: Position| position.steps_before(settings.roles.len(), settings.epochs, batches);
    let tasks = experiment.stream.tasks().len();
    let all = before(Position::of_task(tasks));
    Progress::new(log, tasks, all, before(from.position))
}

/// Accuracies, time and memory of a run that is done.
fn summary(results: &Results, path: &Path) -> String {
    let mut text = String::new();
    for (title, summary) in [("teacher", &results.teacher), ("student", &results.student)] {
        if let Some(summary) = summary {
            text += &accuracies(title, summary);
            text.push('\n');
        }
    }
    let (seconds, memory, path) = (results.wall_seconds, peak_memory(results), path.display());
    text + &format!("{seconds:.1} s{memory}; results are in {path}\n")
}

fn introduce(config: &Config, Experiment { stream, trainer, .. }: &Experiment) {
    let (run, tasks, side) = (&config.run, stream.tasks(), stream.image_size());
    let (name, classes) = (&run.stream.name, tasks.last().map_or(0, Task::seen));
    let train: usize = tasks.iter().map(|task| stream.train_count(task.index)).sum();
    let test: usize = tasks.iter().map(|task| stream.test_count(task.index)).sum();
    tracing::info!(
        "{name}: {} in {}, {train} training and {test} test images of {side} px",
        count(classes, "class"),
        count(tasks.len(), "task")
    );
    if let Some(task) = tasks.iter().find(|task| stream.train_classes(task.index).len() == 1) {
        tracing::warn!(
            "task {} is learned among one class alone: its cross-entropy is zero and nothing is learned from labels",
            task.index + 1
        );
    }
    for &role in &trainer.settings.roles {
        let BackboneSpec { depth, width, normalization, provenance, .. } =
            trainer.network(role).backbone.spec();
        let Provenance { source, file, sha256, .. } = provenance;
        let trained: usize = trainer.trainable(role).iter().map(|var| var.tensor().elem_count()).sum();
        let (role, learner) = (role.as_str(), run.learner(role).0.name);
        tracing::info!(
            "{role}: {source} ({depth} blocks, width {width}), learner {learner}, {trained} trainable parameters"
        );
        tracing::debug!("{role}: {file} with SHA-256 {sha256}, {normalization:?}");
    }
    let distillers: Vec<&str> = run.distillers().iter().map(|section| section.name.as_str()).collect();
    tracing::info!("distiller {}, seed {}", distillers.join(" and "), run.seed);
}

fn tell_task(index: usize, results: &Results) {
    let means: String = averages(results).iter().map(|average| format!(", {average}")).collect();
    tracing::info!("task {}/{} done: average accuracy over tasks so far{means}", index + 1, results.tasks);
    let Skipped { train, test } = results.skipped_images;
    if train + test > 0 {
        tracing::warn!("left out so far, since they cannot be read: {train} training and {test} test images");
    }
}
