//! `cdl run`.

use std::{path::PathBuf, time::Instant};

use cdl_core::run::directory::RunDir;
use clap::Args;

use crate::{config_args::ConfigArgs, failure::Failure, lifecycle::begin, logging::Log};

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
pub fn run(args: &RunArgs, log: &Log) -> Result<(), Failure> {
    let start = Instant::now();
    let config = args.config.load()?;
    let path = args.run_dir.clone().unwrap_or_else(|| RunDir::default_path(&config));
    begin(&path, &config, args.overwrite, start, log)
}
