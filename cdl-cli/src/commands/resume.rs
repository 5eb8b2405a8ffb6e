//! `cdl resume`: continues a stopped run or sweep.

use std::{path::PathBuf, time::Instant};

use cdl_core::run::directory::read_record;
use clap::Args;

use super::sweep;
use crate::{
    config_args::load_config, failure::Failure, lifecycle::continue_run, logging::Log,
    sweep::layout::is_sweep,
};

/// Arguments of `cdl resume`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cdl resume runs/quickstart-seed1-20260101-120000
  cdl resume runs/alone --set checkpoint.every_steps=100
  cdl resume sweeps/quickstart-1a2b3c4d     continue the cells of a sweep

The results are byte for byte those of a run that was never stopped. Data and weights must therefore be unchanged, and \
only settings that cannot change results may differ: stream.input.workers, stream.input.prefetch, stream.input.cache_mb, \
checkpoint.*, record.*, device (of the same kind), and --threads.")]
pub struct ResumeArgs {
    /// Directory of a run or of a sweep
    run_dir: PathBuf,
    /// Override a value that cannot change results; repeatable
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
}

/// Continues a run from its newest readable checkpoint, or the unfinished cells of a sweep.
pub fn resume(args: &ResumeArgs, log: &Log) -> Result<(), Failure> {
    let start = Instant::now();
    let root = &args.run_dir;
    if is_sweep(root) {
        return sweep::resume(root, &args.sets);
    }
    read_record(root)?;
    let config = load_config(&[root.join("config.toml")], &args.sets)?;
    continue_run(root, &config, start, log)
}
