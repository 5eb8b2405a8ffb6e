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
/// prompts, the student with the teacher's help.
#[derive(Debug, Parser)]
#[command(
    name = "cdl",
    version,
    after_help = "\
Examples:
  cdl run configs/quickstart.toml                     a whole run on what this program carries
  cdl run configs/quickstart.toml configs/baseline/student_alone.toml --run-dir runs/alone
                                                      the same with another file laid over it
  cdl run configs/quickstart.toml --set seed=2        the same with another value
  cdl check configs/quickstart.toml                   what would fail, and how long a run takes
  cdl list                                            all methods, networks and data streams
  cdl describe vit                                    settings of one of them
  cdl explain configs/quickstart.toml                 every value and where it was set
  cdl resume runs/alone                               go on with a run that was stopped
  cdl eval runs/alone                                 test saved models again
  cdl export runs/alone --student boots               the student in a folder of its own
  cdl predict boots images/                           what images show, by that student
  cdl sweep configs/quickstart.toml --vary learner.pool=10,20 --seeds 1,2,3
                                                      a grid of runs: means, deviations, differences
  cdl report runs/alone runs/kd                       runs side by side in one page"
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// Only warnings and results
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// More detail
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// Threads to compute with; results do not depend on it [default: all cores]
    #[arg(long, global = true, value_name = "N", value_parser = threads)]
    pub threads: Option<NonZeroUsize>,
    /// Load a plugin, a library made by `cdl plugin build`; may be repeated
    #[arg(long = "plugin", global = true, value_name = "FILE")]
    pub plugins: Vec<PathBuf>,
}

/// Parses a number of threads. Far more threads than cores wait for one another most of the time.
fn threads(text: &str) -> Result<NonZeroUsize, String> {
    let most = 8 * std::thread::available_parallelism().map_or(8, NonZeroUsize::get).max(8);
    let number = text.parse().ok().filter(|number: &NonZeroUsize| number.get() <= most);
    number.ok_or_else(|| format!("expected a whole number from 1 to {most}"))
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train and test teacher and student on all tasks
    Run(run::RunArgs),
    /// Go on with a run that was stopped
    Resume(resume::ResumeArgs),
    /// List the registered backbones, learners, distillers and streams
    List {
        /// JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Show what a plugin is, its settings and its citation
    Describe {
        /// Name of the plugin, or `run` (top-level keys), `optimizer`, `schedule`, `checkpoint`, `record`, or `metrics` (a
        /// line of metrics.jsonl)
        name: String,
        /// JSON instead of text: a plugin's defaults and JSON Schema
        #[arg(long)]
        json: bool,
    },
    /// Show every value of a configuration and where it was set
    Explain(explain::ExplainArgs),
    /// Print a JSON Schema of configurations, for editors that complete and check TOML
    Schema,
    /// Write the configuration files that ship with the program into a folder
    Configs(configs::ConfigsArgs),
    /// Test the saved models of a run again
    Eval(eval::EvalArgs),
    /// Put a trained network into a folder of its own, which needs neither the run nor its data
    Export(export::ExportArgs),
    /// Say what images show, by an exported network
    Predict(predict::PredictArgs),
    /// Run a grid of configurations and seeds, and say what they have in common
    Sweep(sweep::SweepArgs),
    /// Put runs beside the published results, with everything that differs
    Compare(compare::CompareArgs),
    /// Show runs as one page that works offline, as figures and as tables
    Report(report::ReportArgs),
    /// Validate a configuration, its data and weights without running it
    Check(check::CheckArgs),
    /// Fetch, verify and split data sets
    #[command(subcommand)]
    Data(data::DataCommand),
    /// Measure a teacher step and a student step
    Bench(bench::BenchArgs),
    /// Make, build, check and list plugins: methods that are loaded at run time
    #[command(subcommand)]
    Plugin(plugin::PluginCommand),
    /// Put a program that loads plugins, and what building them needs, into one folder
    Dist(dist::DistArgs),
    /// Print a script that completes commands and options in a shell
    Completions {
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Write manual pages into a folder
    Man {
        /// Folder for the pages, for instance ~/.local/share/man/man1
        dir: PathBuf,
    },
}

impl Command {
    /// True if plugins are loaded before the command runs; other commands look at libraries themselves, or need none.
    pub fn needs_plugins(&self) -> bool {
        match self {
            Self::Plugin(command) => matches!(command, plugin::PluginCommand::Check(_)),
            command => !matches!(command, Self::Dist(_)),
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
