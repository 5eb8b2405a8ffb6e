//! `cdl resume`.

use std::{path::PathBuf, time::Instant};

use cdl_core::run::directory::read_record;
use clap::Args;

use super::sweep;
use crate::{
    config_args::load_config, failure::Failure, lifecycle::go_on, logging::Log, sweep::layout::is_sweep,
};

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
pub fn resume(args: &ResumeArgs, log: &Log) -> Result<(), Failure> {
    let start = Instant::now();
    let root = &args.run_dir;
    if is_sweep(root) {
        return sweep::resume(root, &args.sets);
    }
    read_record(root)?;
    let config = load_config(&[root.join("config.toml")], &args.sets)?;
    go_on(root, &config, start, log)
}
