//! The command line: options, commands, and their dispatch.

use std::{num::NonZeroUsize, path::PathBuf};

use clap::{Parser, Subcommand};
use clap_complete::Shell;

use crate::{
    bench::profile::Profile,
    commands::{
        bench, check, compare, completions, configs, data, describe, dist, eval, explain, export, list,
        plugin, predict, report, resume, run, schema, sweep,
    },
    failure::Failure,
    logging::Log,
};

/// Continual distillation learning: a teacher and a student vision transformer learn classes task by task with
/// prompts, and the teacher's knowledge is distilled into the student.
#[derive(Debug, Parser)]
#[command(
    name = "cdl",
    version,
    after_help = "\
Examples:
  cdl configs                                   write the files used below
  cdl run configs/quickstart.toml               train on built-in data, 1 minute
  cdl run configs/quickstart.toml --set seed=2  change a value
  cdl run configs/quickstart.toml --run-dir runs/first
  cdl run configs/quickstart.toml configs/baseline/student_alone.toml --run-dir runs/alone
                                                without a teacher
  cdl check configs/quickstart.toml             find errors; memory, time, disk space
  cdl list                                      all methods and data streams
  cdl describe vit                              settings of a method or stream
  cdl explain configs/quickstart.toml           all values and their origins
  cdl resume runs/first                         continue a stopped run
  cdl report runs/first runs/alone              compare runs on one page
  cdl export runs/first --student student       export the student
  cdl predict student images/                   classify images with the student
  cdl sweep configs/quickstart.toml --vary learner.pool=10,20 --seeds 1,2,3
                                                run a grid, tabulate means

All commands that use the methods of a configuration load the plugins that it lists under `plugins`, and so run their \
code: also explain, check, data, sweep, eval, resume and export. Use --no-plugins for files that you do not trust.

Exit codes: 0 success, 1 failure while running, 2 invalid input, 75 another process runs the sweep's cell, 130 and 143 \
stopped by a signal."
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// Print only warnings, errors and results
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Also print debug messages
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// Number of threads; results do not depend on it [default: all cores]
    #[arg(long, global = true, value_name = "N", value_parser = threads)]
    pub threads: Option<NonZeroUsize>,
    /// Load a plugin (a library built by `cdl plugin build`); repeatable
    #[arg(long = "plugin", global = true, value_name = "FILE")]
    pub plugins: Vec<PathBuf>,
    /// Run no code of plugins: load neither those that a configuration or a run lists nor those in CDL_PLUGIN_PATH
    #[arg(long, global = true, conflicts_with = "plugins")]
    pub no_plugins: bool,
}

/// Parses the value of `--threads`: 1 to eight times the number of cores, at least 64. More threads would mostly wait
/// for one another.
fn threads(text: &str) -> Result<NonZeroUsize, String> {
    let limit = 8 * std::thread::available_parallelism().map_or(8, NonZeroUsize::get).max(8);
    let number = text.parse().ok().filter(|number: &NonZeroUsize| number.get() <= limit);
    number.ok_or_else(|| format!("expected a whole number from 1 to {limit}"))
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train and test a teacher and a student on all tasks
    Run(run::RunArgs),
    /// Continue a stopped run or sweep
    Resume(resume::ResumeArgs),
    /// List the available backbones, learners, distillers and streams
    List {
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Show the settings, defaults and citation of a method, or the keys of a section
    #[command(after_help = "Examples:\n  cdl describe vit\n  cdl describe optimizer\n  cdl describe query")]
    Describe {
        /// Name of a method, network or stream (see `cdl list`), or a section: `run` (top-level keys), `optimizer`,
        /// `schedule`, `checkpoint`, `record`, `metrics` (fields of metrics.jsonl), or a top-level key
        name: String,
        /// Print JSON instead of text: defaults and JSON Schema
        #[arg(long)]
        json: bool,
    },
    /// Show every value of a configuration and its origin
    Explain(explain::ExplainArgs),
    /// Print the JSON Schema of configuration files, for completion and checks in editors
    #[command(after_help = "\
Example:
  cdl schema > cdl.schema.json

Editors with TOML support use it in files that begin with `#:schema ./cdl.schema.json`.")]
    Schema,
    /// Write the configuration files that ship with cdl into a folder
    Configs(configs::ConfigsArgs),
    /// Test the saved models of a run again
    Eval(eval::EvalArgs),
    /// Export a trained network as a self-contained folder
    Export(export::ExportArgs),
    /// Classify images with an exported network
    Predict(predict::PredictArgs),
    /// Run a grid of configurations and seeds; tabulate means and differences
    Sweep(sweep::SweepArgs),
    /// Compare runs with the published results; list the settings that differ
    Compare(compare::CompareArgs),
    /// Write an HTML page about one or several runs, with figures and tables
    Report(report::ReportArgs),
    /// Validate a configuration, its data and weights without running it
    Check(check::CheckArgs),
    /// Download, verify and split data sets
    #[command(subcommand)]
    Data(data::DataCommand),
    /// Measure time and memory of training steps or of inference
    Bench(bench::BenchArgs),
    /// Create, build, check and list plugins: methods loaded at run time
    #[command(subcommand)]
    Plugin(plugin::PluginCommand),
    /// Build a folder with a `cdl` that can build and load plugins
    Dist(dist::DistArgs),
    /// Print a script that completes commands and options in a shell
    #[command(after_help = "\
Example:
  cdl completions bash > ~/.local/share/bash-completion/completions/cdl")]
    Completions {
        /// Shell that runs the script
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Write manual pages into a folder
    Man {
        /// Folder of the pages, for instance ~/.local/share/man/man1
        dir: PathBuf,
    },
}

impl Command {
    /// True if the plugins of `--plugin` and `CDL_PLUGIN_PATH` are loaded before the command runs. The other commands
    /// load libraries themselves or need none.
    pub fn needs_plugins(&self) -> bool {
        match self {
            Self::Plugin(command) => matches!(command, plugin::PluginCommand::Check(_)),
            Self::Resume(args) => args.needs_plugins(),
            Self::Sweep(args) => args.needs_plugins(),
            Self::Data(command) => command.needs_plugins(),
            Self::Configs(_)
            | Self::Report(_)
            | Self::Compare(_)
            | Self::Dist(_)
            | Self::Completions { .. }
            | Self::Man { .. } => false,
            Self::Run(_)
            | Self::List { .. }
            | Self::Describe { .. }
            | Self::Explain(_)
            | Self::Schema
            | Self::Eval(_)
            | Self::Export(_)
            | Self::Predict(_)
            | Self::Check(_)
            | Self::Bench(_) => true,
        }
    }

    /// Runs the command.
    pub fn run(self, plugins: &[PathBuf], log: &Log, profile: &Profile) -> Result<(), Failure> {
        match self {
            Self::Run(args) => run::run(&args, log),
            Self::Resume(args) => resume::resume(&args, log),
            Self::List { json } => list::list(json),
            Self::Describe { name, json } => describe::describe(&name, json),
            Self::Explain(args) => explain::explain(&args),
            Self::Schema => schema::schema(),
            Self::Configs(args) => configs::configs(&args),
            Self::Eval(args) => eval::eval(&args),
            Self::Export(args) => export::export(&args),
            Self::Predict(args) => predict::predict(&args, log),
            Self::Sweep(args) => sweep::sweep(&args, log),
            Self::Compare(args) => compare::compare(&args),
            Self::Report(args) => report::report(&args),
            Self::Check(args) => check::check(&args, log),
            Self::Data(command) => data::data(&command, log),
            Self::Bench(args) => bench::bench(&args, profile),
            Self::Plugin(command) => command.run(plugins),
            Self::Dist(args) => dist::dist(&args),
            Self::Completions { shell } => completions::completions(shell),
            Self::Man { dir } => completions::man(&dir),
        }
    }
}
