//! `cdl`: continual distillation learning on the command line.
//!
//! A binary of one line makes a `cdl` with plugins of its own: `fn main() -> ExitCode { cdl_cli::main() }` in a crate
//! that registers them.
//!
//! Exit codes: 0 done, 1 failed while working, 2 the user's mistake, 75 the cell of a sweep that another process is at, 130
//! and 143 stopped by SIGINT and SIGTERM.

mod bench;
mod bench_inference;
mod bench_input;
mod check;
mod compare;
mod data;
mod describe;
mod dist;
mod eval;
mod explain;
mod export;
mod list;
mod logging;
mod place;
mod plugin;
mod predict;
mod profile;
mod progress;
mod report;
mod resume;
mod run;
mod signals;
mod sweep;
mod table;
mod tensorboard;
mod toolchain;
mod train;

use std::{num::NonZeroUsize, path::PathBuf, process::ExitCode};

use cdl_core::config::{Config, ConfigLayers};
use clap::{Args, Parser, Subcommand};
use signal_hook::consts::{SIGINT, SIGTERM};

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
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Only warnings and results
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// More detail
    #[arg(short, long, global = true)]
    verbose: bool,
    /// Threads to compute with; results do not depend on it [default: all cores]
    #[arg(long, global = true, value_name = "N")]
    threads: Option<usize>,
    /// Load a plugin, a library made by `cdl plugin build`; may be repeated
    #[arg(long = "plugin", global = true, value_name = "FILE")]
    plugins: Vec<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train and test teacher and student on all tasks
    Run(run::RunArgs),
    /// Go on with a run that was stopped
    Resume(resume::ResumeArgs),
    /// List the registered backbones, learners, distillers and streams
    List,
    /// Show what a plugin is, its settings and its citation
    Describe {
        /// Name of the plugin, or `run` (top-level keys), `optimizer`, `schedule`, `checkpoint`, `record`, or `metrics` (a
        /// line of metrics.jsonl)
        name: String,
    },
    /// Show every value of a configuration and where it was set
    Explain(ConfigArgs),
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
    /// Look at everything that a run needs, before it: all mistakes at once, space, memory and time
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
}

/// A configuration file with overrides.
#[derive(Debug, Args)]
struct ConfigArgs {
    /// Configuration files (TOML), later ones over earlier ones
    #[arg(required = true, value_name = "CONFIG")]
    configs: Vec<PathBuf>,
    /// Override a value, for instance --set learner.pool=50; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
}

impl ConfigArgs {
    fn load(&self) -> Result<Config, Failure> {
        let layers = ConfigLayers::read(&self.configs, &self.sets);
        let without_effect: Vec<String> =
            layers.without_effect().into_iter().map(|file| file.display().to_string()).collect();
        let config = load_config(layers)?;
        // Files in the wrong order would run something else than what was meant.
        for file in without_effect {
            tracing::warn!(
                "{file} changes nothing: the files after it say otherwise; the base comes first, then what differs"
            );
        }
        Ok(config)
    }
}

/// The configuration of `layers`, the plugins that it names loaded before.
fn load_config(layers: ConfigLayers) -> Result<Config, Failure> {
    plugin::load_named(&layers)?;
    let draft = layers.draft();
    let more = draft.mistakes.len().saturating_sub(1);
    draft.into_config().map_err(|error| {
        let mut failure = Failure::before_writing(error);
        if more > 0 {
            failure.message += &format!(" (and {more} more: see `cdl check`)");
        }
        failure
    })
}

/// The exit code of a process that was to run a cell of a sweep and leaves it to another.
const BUSY: u8 = 75;

/// What went wrong, and the exit code for it.
struct Failure {
    message: String,
    code: u8,
}

impl From<cdl_core::Error> for Failure {
    fn from(error: cdl_core::Error) -> Self {
        Self { code: if error.is_user_error() { 2 } else { 1 }, message: first_line(&error) }
    }
}

impl Failure {
    /// The user's mistake.
    fn mistake(message: String) -> Self {
        Self { message, code: 2 }
    }

    /// Something that went wrong while working.
    fn working(message: String) -> Self {
        Self { message, code: 1 }
    }

    /// Whether the process was asked to stop and did.
    fn is_stop(&self) -> bool {
        [SIGINT, SIGTERM].contains(&(i32::from(self.code) - signals::STOPPED))
    }

    /// An error met while everything is looked at and nothing is written yet: what the user gave cannot be worked
    /// with, unless the network broke off.
    fn before_writing(error: cdl_core::Error) -> Self {
        let code = match &error {
            cdl_core::Error::Hub(hub) if !hub.is_user_error() => 1,
            _ => 2,
        };
        Self { code, message: first_line(&error) }
    }
}

/// The error in one line; candle adds a backtrace when it is asked for one.
fn first_line(error: &cdl_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_string()
}

/// As [`main`], for a program whose `cdl-core` is the shared library `cdl-dylib`: it loads plugins.
pub fn main_with_plugins() -> ExitCode {
    plugin::share();
    main()
}

/// Runs the program on the command line's arguments, with the built-in plugins and whatever else is linked in.
pub fn main() -> ExitCode {
    cdl_core::panics::keep_quiet();
    let cli = Cli::parse();
    cdl_plugins::link();
    let profile = matches!(cli.command, Command::Bench(_)).then(profile::Profile::default);
    let log = logging::start(cli.quiet, cli.verbose, profile.clone());
    let loads = match &cli.command {
        Command::Plugin(command) => !command.loads_itself(),
        Command::Dist(_) => false,
        _ => true,
    };
    let work = || match cli.command {
        Command::Run(args) => run::run(&args, &log, cli.quiet),
        Command::Resume(args) => resume::resume(&args, &log, cli.quiet),
        Command::List => list::list(),
        Command::Describe { name } => describe::describe(&name),
        Command::Explain(args) => explain::explain(&args),
        Command::Eval(args) => eval::eval(&args),
        Command::Export(args) => export::export(&args),
        Command::Predict(args) => predict::predict(&args, &log, cli.quiet),
        Command::Sweep(args) => sweep::sweep(&args, &log, cli.quiet),
        Command::Compare(args) => compare::compare(&args),
        Command::Report(args) => report::report(&args),
        Command::Check(args) => check::check(&args, &log, cli.quiet),
        Command::Data(command) => data::data(&command, &log, cli.quiet),
        Command::Bench(args) => bench::bench(&args, &profile.unwrap_or_default()),
        Command::Plugin(command) => command.run(&cli.plugins),
        Command::Dist(args) => dist::dist(&args),
    };
    let settled = match cli.threads.map(NonZeroUsize::new) {
        Some(None) => Err(Failure::mistake("--threads 0: expected at least 1".into())),
        threads => {
            cdl_core::threads::settle(threads.flatten());
            Ok(())
        }
    };
    let done =
        settled.and_then(|()| if loads { plugin::load_all(&cli.plugins) } else { Ok(()) }).and_then(|()| {
            // What a plugin's panic could not return from where it happened, it returns here.
            cdl_core::catch(|| Ok(work())).map_err(Failure::before_writing)?
        });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tracing::error!("{}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}

/// Writes results to standard output; a reader that has gone away, as in `cdl list | head`, is no failure.
fn emit(text: &str) -> Result<(), Failure> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::working(format!("standard output: {e}")))
        }
        _ => Ok(()),
    }
}
