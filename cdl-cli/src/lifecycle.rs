//! Starting a run, and continuing one that was stopped.

use std::{path::Path, time::Instant};

use cdl_core::{
    config::Config,
    error::Error,
    run::{
        Experiment,
        directory::{RunDir, read_results},
        resume_check::{check_config, check_record},
    },
    train::RunState,
};

use crate::{
    failure::{Failure, first_line},
    logging::Log,
    recorded_training::Training,
    terminal::emit,
};

/// True if a run was started in `root`.
pub fn is_begun(root: &Path) -> bool {
    root.join("run.json").exists()
}

/// Runs `config` from the beginning and writes results to `path`, or to the default path.
pub fn begin(
    path: Option<&Path>,
    config: &Config,
    overwrite: bool,
    start: Instant,
    log: &Log,
) -> Result<(), Failure> {
    let experiment = Experiment::build(config).map_err(Failure::before_writing)?;
    let (record, needed) = (experiment.record(config)?, experiment.disk_bytes(config)?);
    let directory = match path {
        Some(path) => RunDir::create(path, config, &record, needed, overwrite)?,
        None => RunDir::create_default(config, &record, needed)?,
    };
    Training { experiment, directory, from: RunState::default(), spent: 0.0, start }.run(config, log)
}

/// True if the run in `root` has finished all its tasks.
pub fn is_finished(root: &Path, config: &Config) -> bool {
    let limit = config.run.max_tasks().unwrap_or(usize::MAX);
    read_results(root).is_ok_and(|results| results.tasks_done >= results.tasks.min(limit))
}

/// Returns the error of a `results.json` that cannot be read. Without a checkpoint the run may be finished, so it must
/// not be trained again because of a damaged file.
pub fn damaged_results(root: &Path) -> Option<Error> {
    read_results(root).err().filter(|_| root.join("results.json").exists())
}

/// Continues the run in `root` from its newest readable checkpoint to its end, with the current `config`.
pub fn continue_run(root: &Path, config: &Config, start: Instant, log: &Log) -> Result<(), Failure> {
    if is_finished(root, config) {
        // The process may have been killed before it removed its checkpoints.
        if root.join("checkpoints").exists() {
            RunDir::open(root, config)?.0.finish()?;
        }
        return emit(&format!("the run in {} is finished\n", root.display()));
    }
    let (mut directory, checkpoint, begun) = RunDir::open(root, config)?;
    if let Some(error) = damaged_results(root).filter(|_| checkpoint.is_none()) {
        return Err(Failure::invalid(format!(
            "{}; the run may be finished: restore the file, or remove it to start the run from the beginning",
            first_line(&error)
        )));
    }
    check_config(config, &begun)?;
    let mut experiment = Experiment::build(config).map_err(Failure::before_writing)?;
    check_record(root, &experiment.record(config)?)?;
    let (from, spent) = match checkpoint {
        Some(checkpoint) => {
            let (metrics, spent) = (checkpoint.meta.metrics_bytes, checkpoint.meta.wall_seconds);
            let sha256 = checkpoint.meta.metrics_sha256.clone();
            let from = checkpoint.restore(&mut experiment.trainer, experiment.stream.as_ref())?;
            directory.truncate_metrics(metrics, sha256.as_deref())?;
            tracing::info!("resuming at {}", from.position.describe(&experiment.trainer.settings.roles));
            (from, spent)
        }
        None => {
            tracing::warn!("{}: no readable checkpoint; the run starts from the beginning", root.display());
            directory.truncate_metrics(0, None)?;
            (RunState::default(), 0.0)
        }
    };
    Training { experiment, directory, from, spent, start }.run(config, log)
}
