//! `cdl sweep`: a grid of runs, what they have in common, and how they differ.

mod axis;
mod cell;
mod manifest;
mod page;
mod plan;
mod pool;
mod slurm;
mod statistics;
mod summary;
mod tables;

use std::{
    fs,
    path::{Path, PathBuf},
};

use cdl_core::{
    Config, Error,
    run_dir::{lock, read_results, write_atomic},
};
use clap::{Args, ValueEnum};

use self::{
    axis::{Axis, Value},
    manifest::State,
    plan::{Cell, Plan},
};
pub use self::{
    statistics::Spread,
    summary::{Summary, summary_of},
};
use crate::{Failure, emit, logging::Log, place, signals::Signals};

/// Arguments of `cdl sweep`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cdl sweep configs/quickstart.toml --vary optimizer.lr=1e-3,5e-3 --vary learner.pool=10,20 --seeds 1,2,3 --jobs 2
  cdl sweep configs/quickstart.toml --vary-file configs/distiller/none.toml,mine.toml --seeds 1,2,3 --out sweeps/distillers
  cdl sweep configs/quickstart.toml --vary learner.pool=10,20 --orders 1,2,3
  cdl sweep configs/quickstart.toml --vary learner.pool=10,20 --seeds 1,2,3 --emit slurm
  cdl resume sweeps/distillers

Every cell of the grid is a run in DIR/cells. The same command again, or `cdl resume DIR`, runs what is missing, goes on
with what was stopped and leaves the rest; with more values or seeds, the sweep grows. Tables, a figure and a page with
means, standard deviations and paired differences are in DIR. A cell that fails stops no other.")]
pub struct SweepArgs {
    /// Configuration files (TOML), later ones over earlier ones
    #[arg(required_unless_present = "resume", value_name = "CONFIG")]
    configs: Vec<PathBuf>,
    /// Override a value in every cell; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Compare these values of a key; may be repeated
    #[arg(long, value_name = "KEY=A,B,...")]
    vary: Vec<String>,
    /// Compare these configuration files, each laid over the others; may be repeated
    #[arg(long, value_name = "[NAME=]A,B,...")]
    vary_file: Vec<String>,
    /// Repeat every combination with these seeds
    #[arg(long, value_name = "N,N,...", value_delimiter = ',')]
    seeds: Vec<u64>,
    /// Repeat every combination with the class orders that these seeds draw
    #[arg(long, value_name = "N,N,...", value_delimiter = ',')]
    orders: Vec<u64>,
    /// Repeat every combination with these values of a key, as with seeds; may be repeated
    #[arg(long, value_name = "KEY=A,B,...")]
    repeat: Vec<String>,
    /// Combination that the others are compared with; may be repeated [default: the first]
    #[arg(long, value_name = "KEY=VALUE")]
    baseline: Vec<String>,
    /// Cells that run at once; the threads are shared out among them [default: 1]
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Folder of the sweep [default: one under sweeps/ named after the command]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on with the sweep in a folder
    #[arg(long, value_name = "DIR", conflicts_with_all = ["configs", "sets", "vary", "vary_file", "seeds", "orders", "repeat", "out"])]
    resume: Option<PathBuf>,
    /// Run nothing: write tables, figure and page of what is there
    #[arg(long, conflicts_with_all = ["emit", "cell"])]
    collect: bool,
    /// Run nothing: write a script that runs the cells elsewhere
    #[arg(long, value_enum, value_name = "WHERE", conflicts_with = "cell")]
    emit: Option<Emit>,
    /// Run one cell, counted from 0, in this process
    #[arg(long, value_name = "N", requires = "resume")]
    cell: Option<usize>,
    /// Stop when standard input ends
    #[arg(long, hide = true, requires = "cell")]
    leash: bool,
}

/// Where cells can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Emit {
    /// A job array of Slurm
    Slurm,
}

/// A sweep with all its cells.
pub struct Sweep {
    folder: PathBuf,
    plan: Plan,
    cells: Vec<Cell>,
    configs: Vec<Config>,
}

impl Sweep {
    /// The sweep in `folder`.
    pub fn read(folder: &Path) -> Result<Self, Failure> {
        let plan = Plan::read(folder)?;
        let cells = plan.cells();
        let configs = cells.iter().map(|cell| plan::read_config(folder, &cell.name));
        let configs = configs.collect::<Result<_, _>>()?;
        Ok(Self { folder: folder.into(), plan, cells, configs })
    }

    /// A cell's value of every axis by name.
    fn labels<'a>(&'a self, cell: &'a Cell) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.plan.axes().zip(&cell.values).map(|(axis, value)| (axis.name.as_str(), value.label.as_str()))
    }

    /// What a finished cell came to, in a few words.
    fn headline(&self, number: usize) -> String {
        let results = read_results(&plan::run_folder(&self.folder, &self.cells[number].name));
        let Ok(results) = results else { return String::new() };
        let networks = [("teacher", results.teacher), ("student", results.student)];
        let words = networks
            .into_iter()
            .filter_map(|(name, summary)| Some(format!("{name} {:.2} %, ", summary?.average_accuracy)));
        words.collect()
    }
}

/// Whether a folder is a sweep's.
pub fn is_sweep(folder: &Path) -> bool {
    folder.join(plan::FILE).exists()
}

/// Runs a grid, or what is left of it.
pub fn sweep(args: &SweepArgs, log: &Log, quiet: bool) -> Result<(), Failure> {
    if args.jobs == Some(0) {
        return Err(Failure::mistake("--jobs 0: expected at least 1".into()));
    }
    let (sweep, _lock) = match (&args.resume, args.cell) {
        (Some(folder), Some(number)) => {
            return cell::run_cell(folder, number, args.leash, log, quiet);
        }
        (Some(folder), None) => {
            let mut sweep = Sweep::read(folder)?;
            if !args.baseline.is_empty() {
                sweep.plan.baseline.clone_from(&args.baseline);
                sweep.plan.baseline()?;
            }
            sweep.plan.jobs = args.jobs.unwrap_or(sweep.plan.jobs);
            let lock = lock(folder)?;
            (sweep, lock)
        }
        (None, _) => begin(args)?,
    };
    match args.emit {
        Some(Emit::Slurm) => slurm::emit(&sweep),
        None if args.collect => {
            let states = manifest::look(&sweep)?;
            manifest::write(&sweep, &states)?;
            collect(&sweep, &states)
        }
        None => work(&sweep),
    }
}

/// Goes on with the sweep in `folder`.
pub fn resume(folder: &Path, sets: &[String]) -> Result<(), Failure> {
    if let Some(set) = sets.first() {
        let reason = "the cells of a sweep keep their configurations; resume a cell by its own directory";
        return Err(Failure::mistake(format!("--set {set}: {reason}")));
    }
    let sweep = Sweep::read(folder)?;
    let _lock = lock(folder)?;
    work(&sweep)
}

/// Plans a sweep, and writes the plan once all of it holds.
fn begin(args: &SweepArgs) -> Result<(Sweep, fs::File), Failure> {
    let mut vary = Vec::new();
    for text in &args.vary {
        vary.push(Axis::of_key("--vary", text)?);
    }
    for text in &args.vary_file {
        vary.push(Axis::of_files("--vary-file", text)?);
    }
    let mut repeat = Vec::new();
    if !args.orders.is_empty() {
        repeat.push(Axis { name: "class_order".into(), values: args.orders.iter().map(order).collect() });
    }
    if !args.seeds.is_empty() {
        let value = |seed: &u64| Value {
            label: seed.to_string(),
            files: Vec::new(),
            sets: vec![format!("seed={seed}")],
        };
        repeat.push(Axis { name: "seed".into(), values: args.seeds.iter().map(value).collect() });
    }
    for text in &args.repeat {
        repeat.push(Axis::of_key("--repeat", text)?);
    }
    let plan = Plan {
        configs: args.configs.clone(),
        sets: args.sets.clone(),
        baseline: args.baseline.clone(),
        jobs: args.jobs.unwrap_or(1),
        vary,
        repeat,
    };
    let cells = plan.resolve()?;
    let folder = match &args.out {
        Some(folder) => {
            place::folder("--out", folder)?;
            folder.clone()
        }
        None => plan.default_folder()?,
    };
    // Of a sweep that was killed before its plan was written, there is a lock at most.
    let visible = |entry: std::io::Result<fs::DirEntry>| {
        entry.is_ok_and(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
    };
    let occupied = fs::read_dir(&folder).is_ok_and(|entries| entries.into_iter().any(visible));
    if occupied && !is_sweep(&folder) {
        let reason = "holds something that is not a sweep; choose another --out";
        return Err(Failure::mistake(format!("{}: {reason}", folder.display())));
    }
    fs::create_dir_all(&folder).map_err(|source| Error::Io { file: folder.clone(), source })?;
    let lock = lock(&folder)?;
    plan.write(&folder, &cells)?;
    Ok((Sweep::read(&folder)?, lock))
}

/// A class order of its own seed.
fn order(seed: &u64) -> Value {
    let sets = vec!["stream.class_order=shuffled".into(), format!("stream.class_order_seed={seed}")];
    Value { label: seed.to_string(), files: Vec::new(), sets }
}

/// Runs what is not done, then collects.
fn work(sweep: &Sweep) -> Result<(), Failure> {
    let signals =
        Signals::listen().map_err(|e| Failure::working(format!("signals cannot be listened to: {e}")))?;
    let mut states = manifest::look(sweep)?;
    manifest::write(sweep, &states)?;
    let threads = (rayon::current_num_threads() / sweep.plan.jobs).max(1);
    let folder = sweep.folder.display();
    tracing::info!(
        "{} cells in {folder}, {} at once with {threads} thread(s) each",
        sweep.cells.len(),
        sweep.plan.jobs
    );
    pool::run(sweep, &mut states, threads, &signals)?;
    let done = states.iter().filter(|state| **state == State::Done).count();
    if let Some((signal, code)) = signals.asked() {
        let message = format!(
            "stopped by {signal}: {done} of {} cells are done, those at work were saved; go on with: cdl resume {folder}",
            states.len()
        );
        return Err(Failure { message, code });
    }
    collect(sweep, &states)?;
    let failed: Vec<String> = (sweep.cells.iter().zip(&states))
        .filter_map(|(cell, state)| match state {
            State::Failed { reason } => Some(format!("\n  {}: {reason}", cell.name)),
            _ => None,
        })
        .collect();
    match failed.is_empty() {
        true => Ok(()),
        false => Err(Failure::working(format!(
            "{} of {} cells failed; their logs are in {folder}/logs, and `cdl resume {folder}` tries them again{}",
            failed.len(),
            states.len(),
            failed.concat()
        ))),
    }
}

/// Writes tables, figure and page of all cells that are done.
fn collect(sweep: &Sweep, states: &[State]) -> Result<(), Failure> {
    let summary = Summary::read(sweep)?;
    if summary.done() == 0 {
        tracing::warn!("no cell is done yet: there is nothing to tabulate");
        return Ok(());
    }
    let left = states.iter().filter(|state| **state != State::Done).count();
    if left > 0 {
        tracing::warn!("{left} of {} cells are not done: the tables are without them", states.len());
    }
    let place = |name: &str, text: &str| write_atomic(&sweep.folder.join(name), text.as_bytes());
    place("sweep.csv", &tables::csv(&summary)?)?;
    place("sweep.md", &tables::markdown(&summary))?;
    place("sweep.tex", &tables::latex(&summary))?;
    place("summary.json", &tables::json(&summary)?)?;
    let figure = page::figure(&summary);
    place("accuracy.svg", &figure.standalone())?;
    place("sweep.html", &page::page(sweep, &summary, states, &figure)?)?;
    emit(&(tables::text(&summary) + &format!("tables, figure and page are in {}\n", sweep.folder.display())))
}
