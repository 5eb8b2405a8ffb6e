//! `cdl run`: trains and tests on all tasks.

use std::{path::PathBuf, time::Instant};

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

Values are set by, from lowest to highest precedence: built-in defaults; configuration files in the given order, each \
after the files that it `extends`; environment variables CDL_...; --set. Paths of data and weights are relative to the \
working directory, paths in `extends` and `plugins` to the file that contains them.

On Ctrl-C (SIGINT) or SIGTERM, the current step is finished, the run is saved, and the exit code is 130 or 143. \
`cdl resume DIR` continues the run. A second signal ends the program at once.")]
pub struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Run directory for all results [default: runs/CONFIG-seedN-TIME]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Replace a run in the run directory
    #[arg(long)]
    overwrite: bool,
}

/// Trains, tests and writes results.
pub fn run(args: &RunArgs, log: &Log) -> Result<(), Failure> {
    let start = Instant::now();
    let config = args.config.load()?;
    begin(args.run_dir.as_deref(), &config, args.overwrite, start, log)
}
