//! `cdl resume`.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use cdl_core::{
    Config, Error, Experiment, RunState,
    config::ConfigLayers,
    resume::{check_config, check_record},
    run_dir::{RunDir, read_record, read_results},
};
use clap::Args;

use crate::{Failure, emit, first_line, load_config, logging::Log, sweep, train::Training};

/// Arguments of `cdl resume`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cdl resume runs/quickstart-seed1-20260101-120000
  cdl resume runs/alone --set checkpoint.every_steps=100
  cdl resume sweeps/quickstart-1a2b3c4d                     what a sweep has left to do

The run ends with the same bytes as one that was never stopped. So its data and weights have to be the same, and of its
configuration only what cannot change a result may be another: stream.input.workers, stream.input.prefetch,
stream.input.cache_mb, checkpoint.*, record.*, device (of the same kind), and --threads.")]
pub struct ResumeArgs {
    /// Directory of a run, or of a sweep
    run_dir: PathBuf,
    /// Override a value that cannot change a result; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
}

/// Takes a run up where its newest good checkpoint has it, and finishes it.
pub fn resume(args: &ResumeArgs, log: &Log, quiet: bool) -> Result<(), Failure> {
    let start = Instant::now();
    let root = &args.run_dir;
    if sweep::is_sweep(root) {
        return sweep::resume(root, &args.sets);
    }
    read_record(root)?;
    let config = load_config(ConfigLayers::read(&[root.join("config.toml")], &args.sets))?;
    go_on(root, &config, start, log, quiet)
}

/// Whether the run in `root` has finished all its tasks.
pub fn is_finished(root: &Path, config: &Config) -> bool {
    let limit = config.run.max_tasks().unwrap_or(usize::MAX);
    read_results(root).is_ok_and(|results| results.tasks_done >= results.tasks.min(limit))
}

/// What is wrong with the results of a run. Without a checkpoint it may be a finished one, which is not trained anew because
/// a file of it was damaged.
pub fn damaged_results(root: &Path) -> Option<Error> {
    read_results(root).err().filter(|_| root.join("results.json").exists())
}

/// The same of the run in `root`, with `config` as it is now.
pub fn go_on(root: &Path, config: &Config, start: Instant, log: &Log, quiet: bool) -> Result<(), Failure> {
    if is_finished(root, config) {
        // It may have ended before it could clear up.
        if root.join("checkpoints").exists() {
            RunDir::open(root, config)?.0.finish()?;
        }
        return emit(&format!("the run in {} is finished\n", root.display()));
    }
    let (mut directory, checkpoint, begun) = RunDir::open(root, config)?;
    if let Some(error) = damaged_results(root).filter(|_| checkpoint.is_none()) {
        return Err(Failure::mistake(format!(
            "{}; the run may be finished: put the file right, or remove it for the run to start from its beginning",
            first_line(&error)
        )));
    }
    check_config(config, &begun)?;
    let mut experiment = Experiment::build(config).map_err(Failure::before_writing)?;
    check_record(root, &experiment.record(config)?)?;
    let (from, spent) = match checkpoint {
        Some(checkpoint) => {
            let (metrics, spent) = (checkpoint.about.metrics_bytes, checkpoint.about.wall_seconds);
            let from = checkpoint.restore(&mut experiment.trainer, experiment.stream.as_ref())?;
            directory.cut_metrics(metrics)?;
            tracing::info!("going on at {}", from.position.describe(&experiment.trainer.settings.roles));
            (from, spent)
        }
        None => {
            tracing::warn!("{} has no good checkpoint: the run starts from its beginning", root.display());
            directory.cut_metrics(0)?;
            (RunState::default(), 0.0)
        }
    };
    Training { experiment, directory, from, spent, start }.run(config, log, quiet)
}
