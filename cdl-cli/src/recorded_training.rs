//! Training of a run, from the beginning or from a checkpoint, with its records.

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
    terminal::{accuracy_table, averages, count, emit, heads, shell_quoted},
};

/// Run that is ready to train.
pub struct Training {
    /// Networks, methods and images, in the state to continue from.
    pub experiment: Experiment,
    pub directory: RunDir,
    /// Position and state to continue from.
    pub from: RunState,
    /// Seconds that earlier processes spent on the run.
    pub spent: f64,
    /// Time at which this process started the run or continued it.
    pub start: Instant,
}

impl Training {
    /// Trains, tests, and writes results and checkpoints.
    pub fn run(self, config: &Config, log: &Log) -> Result<(), Failure> {
        let Self { mut experiment, mut directory, from, spent, start } = self;
        let path = directory.path().to_path_buf();
        if let Some(file) = directory.take_log() {
            log.open(file).map_err(|e| {
                Failure::working(format!("{}/log.txt cannot be written: {e}", path.display()))
            })?;
        }
        log_experiment(config, &experiment);
        let signals = Signals::listen()?;
        let events = || EventFiles::begin(directory.path(), from.position.task);
        let mut events = config.run.record.tensorboard.then(events).transpose()?;
        let (progress, seconds) =
            (progress(&experiment, &from, log), || spent + start.elapsed().as_secs_f64());
        let mut finished = from.position.task;
        let mut results: Option<Results> = None;
        let stream = experiment.stream.as_ref();
        let mut on_event = |event: Event<'_>| {
            match event {
                Event::Step { role, task, epoch, step } => progress.step(role, task, epoch, step),
                Event::Epoch(report) => {
                    progress.epoch(report);
                    directory.append_epoch(report)?;
                    events.as_mut().map_or(Ok(()), |events| events.epoch(report))?;
                }
                Event::Task { task, trainer, results: accuracies, evaluation } => {
                    let skipped = stream.skipped();
                    // Events are written before the results, which mark the task as done: a run killed in between
                    // resumes from a checkpoint and writes its events again.
                    events.as_mut().map_or(Ok(()), |events| {
                        events.task(task.index, accuracies, &evaluation.test_images)
                    })?;
                    let written =
                        directory.write_task(task, trainer, accuracies, evaluation, skipped, seconds())?;
                    log_task(task.index, &written);
                    finished = written.tasks_done;
                    results = Some(written);
                }
                Event::Snapshot(snapshot) if snapshot.state.position.task < stream.tasks().len() => {
                    let stop = signals.received().is_some();
                    directory.write_checkpoint(&snapshot, stop, seconds())?;
                    if stop {
                        return Err(Error::Stopped);
                    }
                }
                // A checkpoint of the training before this test exists already.
                Event::TestBatch if signals.received().is_some() => return Err(Error::Stopped),
                Event::Snapshot(_) | Event::TestBatch => {}
            }
            Ok(())
        };
        // A plugin's panic ends the run like an error: finished tasks are kept.
        let result = cdl_core::registry::catch(|| experiment.trainer.run_from(from, stream, &mut on_event));
        progress.finish();
        result.map_err(|error| failure(&error, &signals, finished, &path, directory.writes_checkpoints()))?;
        // The results are complete: files that are no longer needed must not make the run fail.
        if let Err(error) = directory.finish() {
            tracing::warn!("the checkpoints of the finished run cannot be removed: {}", first_line(&error));
        }
        results.map_or(Ok(()), |results| emit(&summary(&results, &path)))
    }
}

/// Failure of a run that ended with an error or was stopped by a signal, with the command that continues it. `finished`
/// is the number of finished tasks; `kept` is true if the run writes checkpoints.
fn failure(error: &Error, signals: &Signals, finished: usize, path: &Path, kept: bool) -> Failure {
    let again = format!("continue with: cdl resume {}", shell_quoted(path));
    match (error, signals.received()) {
        (Error::Stopped, Some((signal, code))) => {
            let saved = if kept { "saved" } else { "not saved because `checkpoint.off = true`" };
            Failure { message: format!("stopped by {signal} and {saved}; {again}"), code }
        }
        _ => {
            let mut message = format!(
                "{}\n{} saved in {}",
                first_line(error),
                count(finished, "finished task"),
                path.display()
            );
            // A loss that is not finite would recur, and a run cannot resume with another version of a plugin.
            if !matches!(error, Error::NotFinite { .. } | Error::Panicked { .. }) {
                message += &format!("; once the cause is fixed, {again}");
            }
            Failure::working(message)
        }
    }
}

/// Progress bar at the position of the run.
fn progress(experiment: &Experiment, from: &RunState, log: &Log) -> Progress {
    let settings = &experiment.trainer.settings;
    let batches = |task: usize| experiment.stream.train_count(task) / settings.batch_size;
    let before = |position: Position| position.steps_before(settings.roles.len(), settings.epochs, batches);
    let tasks = experiment.stream.tasks().len();
    let all = before(Position::of_task(tasks));
    Progress::new(log, tasks, all, before(from.position))
}

/// Accuracies, time and memory of a finished run.
fn summary(results: &Results, path: &Path) -> String {
    let mut text = String::new();
    for (title, summary) in [("teacher", &results.teacher), ("student", &results.student)] {
        if let Some(summary) = summary {
            text += &accuracy_table(title, summary);
            text.push('\n');
        }
    }
    let (seconds, memory, path) = (results.wall_seconds, peak_memory(results), path.display());
    text + &format!("{seconds:.1} s{memory}; results are in {path}\n")
}

/// Logs the data, the networks and the methods of a run.
fn log_experiment(config: &Config, Experiment { stream, trainer, .. }: &Experiment) {
    let (run, tasks, side) = (&config.run, stream.tasks(), stream.image_size());
    let (name, classes) = (&run.stream.name, tasks.last().map_or(0, Task::seen));
    let train: usize = tasks.iter().map(|task| stream.train_count(task.index)).sum();
    let test: usize = tasks.iter().map(|task| stream.test_count(task.index)).sum();
    tracing::info!(
        "{name}: {} in {}, {train} training and {} of {side} px",
        count(classes, "class"),
        count(tasks.len(), "task"),
        count(test, "test image")
    );
    if let Some(task) = tasks.iter().find(|task| stream.train_classes(task.index).len() == 1) {
        tracing::warn!(
            "task {} has a single class: its cross-entropy is zero and nothing is learned from its labels",
            task.index + 1
        );
    }
    for &role in &trainer.settings.roles {
        let spec = trainer.network(role).backbone.spec();
        let BackboneSpec { depth, width, normalization, provenance, .. } = spec;
        let Provenance { source, file, sha256, .. } = provenance;
        let trained: usize = trainer.trainable(role).iter().map(|var| var.tensor().elem_count()).sum();
        let (role, learner) = (role.as_str(), run.learner(role).0.name);
        let (blocks, parameters) = (count(*depth, "block"), count(trained, "trainable parameter"));
        let heads = heads(spec);
        tracing::info!(
            "{role}: {source} ({blocks}, width {width}, {heads}), learner {learner}, {parameters}"
        );
        tracing::debug!("{role}: {file}, SHA-256 {sha256}, {normalization:?}");
    }
    let distillers: Vec<&str> = run.distillers().iter().map(|section| section.name.as_str()).collect();
    tracing::info!("distiller {}, seed {}", distillers.join(" and "), run.seed);
}

/// Logs the average accuracies after a task, and the images skipped so far.
fn log_task(index: usize, results: &Results) {
    let means: String = averages(results).iter().map(|average| format!(", {average}")).collect();
    tracing::info!("task {}/{} done: average accuracy over tasks so far{means}", index + 1, results.tasks);
    let Skipped { train, test } = results.skipped_images;
    if train + test > 0 {
        let test = count(test, "test image");
        tracing::warn!("skipped so far because they cannot be read: {train} training and {test}");
    }
}
