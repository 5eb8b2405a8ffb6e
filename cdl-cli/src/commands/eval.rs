//! `cdl eval`: tests the saved models of a run again.

use std::path::{Path, PathBuf};

use cdl_core::{
    config::Config,
    error::Error,
    metrics::{PoolUsage, accuracy_over_images},
    run::{
        Experiment,
        directory::{Results, check_same, read_model, read_prompt_use, read_results},
    },
    train::{Accuracies, Evaluator},
    traits::Task,
};
use clap::Args;

use crate::{config_args::load_recorded_with, failure::Failure, sweep::grid::expect_run, terminal::emit};

/// Arguments of `cdl eval`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  cdl eval runs/first\n  cdl eval runs/first --task 2")]
pub struct EvalArgs {
    /// Directory of a run
    run_dir: PathBuf,
    /// Test the models saved after this task (from 1) [default: the last finished task]
    #[arg(long, value_name = "N")]
    task: Option<usize>,
    /// Override a value of the run's configuration, for instance --set batch_size=16; repeatable
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
}

/// Run whose networks are restored to their state after a task.
pub struct Restored {
    pub config: Config,
    /// Experiment; the networks that the run has trained have their state after the task.
    pub experiment: Experiment,
    /// Last task that the networks have learned.
    pub task: Task,
    /// Results recorded by the run.
    pub results: Results,
}

/// Builds the experiment of a run and loads the models saved after task `after` (from 1), by default the last finished
/// task. Errors name `command`.
pub fn restored(
    command: &str,
    run_dir: &Path,
    after: Option<usize>,
    sets: &[String],
) -> Result<Restored, Failure> {
    expect_run(run_dir, command)?;
    let results = read_results(run_dir)?;
    let config = load_recorded_with(&run_dir.join("config.toml"), sets)?;
    let mut experiment = Experiment::build(&config).map_err(Failure::before_writing)?;
    check_same(run_dir, &experiment.record(&config)?)?;
    let after = after.unwrap_or(results.tasks_done);
    if !(1..=results.tasks_done).contains(&after) {
        let expected = format!("expected 1 to {}, the tasks that the run has finished", results.tasks_done);
        return Err(Error::setting("--task", after, expected).into());
    }
    let task = experiment.stream.tasks()[after - 1].clone();
    for role in experiment.trainer.settings.roles.clone() {
        let state = read_model(run_dir, task.index, role, &experiment.device)?;
        experiment.trainer.restore(role, &task, &state)?;
    }
    Ok(Restored { config, experiment, task, results })
}

/// Tests the models of a run on every task that they have learned.
pub fn eval(args: &EvalArgs) -> Result<(), Failure> {
    let Restored { experiment, task, results, .. } = restored("eval", &args.run_dir, args.task, &args.sets)?;
    let after = task.index + 1;
    let mut accuracies = Accuracies::default();
    let (trainer, stream) = (&experiment.trainer, experiment.stream.as_ref());
    let tested = Evaluator::default().test(trainer, &task, stream, &mut accuracies, &mut || Ok(()))?;
    let prompts = read_prompt_use(&args.run_dir, task.index)?;
    let mut text = String::new();
    for &role in &trainer.settings.roles {
        let row = accuracies.of(role).rows().last().cloned().unwrap_or_default();
        let cells: Vec<String> = row.iter().map(|accuracy| format!("{accuracy:.2}")).collect();
        let mean = row.iter().sum::<f64>() / row.len().max(1) as f64;
        let (name, cells) = (role.as_str(), cells.join(" "));
        let over_images = accuracy_over_images(&row, &tested.test_images).unwrap_or(mean);
        text += &format!(
            "{name} after task {after}: {cells} %, average {mean:.2} %, over images {over_images:.2} %\n"
        );
        match results.of(role).and_then(|summary| summary.accuracy_matrix.rows().get(after - 1)) {
            Some(recorded) if *recorded == row => text += "  as recorded by the run\n",
            Some(recorded) => text += &format!("  recorded by the run: {recorded:.2?}\n"),
            None => {}
        }
        let used = tested.prompt_use.of(role).as_ref().filter(|pools| !pools.is_empty());
        match prompts.as_ref().and_then(|prompts| prompts.of(role).as_ref()).zip(used) {
            Some((recorded, used)) if same_prompt_use(recorded, used) => {
                text += "  prompts are selected as in the run\n"
            }
            Some(_) => text += "  prompts are selected differently than in the run\n",
            None => {}
        }
    }
    emit(&text)
}

/// True if both have the same pools and the same use of every prompt. Mean weights may differ in their last digits.
fn same_prompt_use(recorded: &[PoolUsage], used: &[PoolUsage]) -> bool {
    let numbers =
        |pools: &[PoolUsage]| pools.iter().flat_map(PoolUsage::rows).flatten().collect::<Vec<f64>>();
    let (new, old) = (numbers(used), numbers(recorded));
    let names = |pools: &[PoolUsage]| pools.iter().map(|pool| pool.pool.clone()).collect::<Vec<_>>();
    names(used) == names(recorded)
        && new.len() == old.len()
        && new.iter().zip(old).all(|(new, old)| (new - old).abs() < 1e-5)
}
