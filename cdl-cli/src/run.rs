//! `cdl run`.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use cdl_core::{Config, Experiment, RunState, run_dir::RunDir};
use clap::Args;

use crate::{ConfigArgs, Failure, logging::Log, train::Training};

/// Arguments of `cdl run`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cdl run configs/quickstart.toml
  cdl run configs/quickstart.toml --set seed=2 --run-dir runs/seed-2
  cdl run configs/quickstart.toml configs/baseline/joint.toml
  CDL_OPTIMIZER__LR=0.005 cdl run configs/quickstart.toml

Values come from, lowest first: built-in defaults, the files in order (each after those it `extends`), CDL_...
environment variables, --set. Relative paths inside a configuration are relative to the working directory.

Ctrl-C (SIGINT) and SIGTERM finish the step, save the run and end with exit code 130 or 143; `cdl resume DIR` goes on.
A second one ends it at once.")]
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
    let path = args.run_dir.clone().unwrap_or_else(|| RunDir::default_path(&config));
    begin(&path, &config, args.overwrite, start, log, quiet)
}

/// Runs `config` from its beginning, with results in `path`.
pub fn begin(
    path: &Path,
    config: &Config,
    overwrite: bool,
    start: Instant,
    log: &Log,
    quiet: bool,
) -> Result<(), Failure> {
    let experiment = Experiment::build(config).map_err(Failure::before_writing)?;
    let (record, needed) = (experiment.record(config)?, experiment.disk_bytes(config)?);
    let directory = RunDir::create(path, config, &record, needed, overwrite)?;
    Training { experiment, directory, from: RunState::default(), spent: 0.0, start }.run(config, log, quiet)
}
