//! `cdl resume`: continues a stopped run or sweep.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use cdl_core::{
    config::{Config, ConfigLayers},
    run::{directory::read_record, resume_check::check_config},
};
use clap::Args;

use super::sweep;
use crate::{
    config_args::{load_config, load_recorded},
    failure::Failure,
    lifecycle::{continue_run, is_finished},
    logging::Log,
    sweep::layout::{is_sweep, read_recorded},
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

impl ResumeArgs {
    /// True if this process uses methods, which plugins may provide. False for a sweep, whose cells use methods in
    /// their own processes, and for a finished run.
    pub fn needs_plugins(&self) -> bool {
        !is_sweep(&self.run_dir) && self.finished().is_none()
    }

    /// Recorded configuration of a finished run, read without plugins; `None` for an unfinished run or an overridden
    /// setting.
    fn finished(&self) -> Option<Config> {
        let file = self.run_dir.join("config.toml");
        let unchanged = !ConfigLayers::read(&[&file], &self.sets).has_overrides();
        let recorded = unchanged.then(|| read_recorded(&file).ok()).flatten();
        recorded.filter(|recorded| is_finished(&self.run_dir, recorded))
    }
}

/// Continues a run from its newest readable checkpoint, or the unfinished cells of a sweep.
pub fn resume(args: &ResumeArgs, log: &Log) -> Result<(), Failure> {
    let start = Instant::now();
    let root = &args.run_dir;
    if is_sweep(root) {
        return sweep::resume(root, &args.sets);
    }
    read_record(root)?;
    let file = root.join("config.toml");
    if let Some(recorded) = args.finished() {
        return continue_run(root, &recorded, start, log);
    }
    let config = load_config(&[&file], &args.sets)?;
    if is_finished(root, &config) {
        let recorded = load_recorded(&file)?;
        check_config(&config, &recorded)?;
        warn_of_changes(root, &config, &recorded)?;
    }
    continue_run(root, &config, start, log)
}

/// Warns of settings that a finished run cannot apply.
fn warn_of_changes(root: &Path, now: &Config, recorded: &Config) -> Result<(), Failure> {
    let recorded = recorded.explain()?;
    let is_new = |(key, value, _): &(String, String, String)| {
        !recorded.iter().any(|(other, before, _)| (other, before) == (key, value))
    };
    for (key, value, origin) in now.explain()?.into_iter().filter(is_new) {
        let root = root.display();
        tracing::warn!("{origin}: `{key} = {value}` has no effect: the run in {root} is finished");
    }
    Ok(())
}
