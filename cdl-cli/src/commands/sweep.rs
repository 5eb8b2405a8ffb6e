//! `cdl sweep`: runs a grid of configurations and seeds and tabulates means and differences.

use std::{
    fs,
    path::{Path, PathBuf},
};

use cdl_core::{
    run::directory::refuse_links,
    system::{atomic::write_atomic, lock::lock},
};
use clap::{Args, ValueEnum};

use crate::{
    failure::{Failure, io},
    logging::Log,
    output_paths,
    report::pdf,
    signals::Signals,
    sweep::{
        axis::Axis,
        cell_check,
        cell_process::run_cell,
        cell_states::{self, State},
        grid::Sweep,
        layout::is_sweep,
        plan::Plan,
        pool, slurm,
        summary::Summary,
        sweep_page, sweep_tables,
    },
    terminal::{count, emit, shell_quoted},
};

/// Arguments of `cdl sweep`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cdl sweep configs/quickstart.toml --vary optimizer.lr=1e-3,5e-3 \\
      --vary learner.pool=10,20 --seeds 1,2,3 --jobs 2
  cdl sweep configs/quickstart.toml --seeds 1,2,3 --out sweeps/distillers \\
      --vary-file configs/distiller/none.toml,mine.toml
  cdl sweep configs/quickstart.toml --vary learner.pool=10,20 --orders 1,2,3
  cdl sweep configs/quickstart.toml --vary learner.pool=10,20 --emit slurm
  cdl resume sweeps/distillers

All cells are checked, as by `cdl check`, before the first one starts. Every cell is a run in DIR/cells. Repeating the \
command, or `cdl resume DIR`, runs missing cells, continues stopped ones and skips finished ones; more values or seeds \
extend the sweep. DIR contains tables, a figure and a page with means, standard deviations and paired differences. A \
failed cell does not stop the others.")]
pub struct SweepArgs {
    /// Configuration files (TOML); later files override earlier ones
    #[arg(required_unless_present = "resume", value_name = "CONFIG")]
    configs: Vec<PathBuf>,
    /// Override a value in every cell; repeatable
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Compare these values of a key; repeatable
    #[arg(long, value_name = "KEY=A,B,...")]
    vary: Vec<String>,
    /// Compare these configuration files; each overrides the CONFIG files; repeatable
    #[arg(long, value_name = "[NAME=]A,B,...")]
    vary_file: Vec<String>,
    /// Repeat every combination with these seeds
    #[arg(long, value_name = "N,N,...", value_delimiter = ',')]
    seeds: Vec<u64>,
    /// Repeat every combination with class orders drawn from these seeds
    #[arg(long, value_name = "N,N,...", value_delimiter = ',')]
    orders: Vec<u64>,
    /// Repeat every combination with these values of a key; repeatable
    #[arg(long, value_name = "KEY=A,B,...")]
    repeat: Vec<String>,
    /// Value of the combination that all others are compared with; repeatable, for each varied key [default: the stored
    /// baseline, or the first combination]
    #[arg(long, value_name = "KEY=VALUE")]
    baseline: Vec<String>,
    /// Number of cells that run at once and share the threads [default: the stored number, or 1]
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Folder of the sweep [default: sweeps/CONFIG-HASH, with a hash of the arguments]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Continue the sweep in a folder
    #[arg(long, value_name = "DIR", conflicts_with_all = ["configs", "sets", "vary", "vary_file", "seeds", "orders", "repeat", "out"])]
    resume: Option<PathBuf>,
    /// Only write tables, figure and page of the finished cells
    #[arg(long, conflicts_with_all = ["emit", "cell"])]
    collect: bool,
    /// Only write a script that runs the cells on a cluster
    #[arg(long, value_enum, value_name = "SYSTEM", conflicts_with = "cell")]
    emit: Option<Emit>,
    /// Largest number of jobs in one array, the cluster's MaxArraySize (`scontrol show config`); a larger sweep takes
    /// several arrays
    #[arg(long, value_name = "N", default_value_t = 1001, requires = "emit", value_parser = clap::value_parser!(u32).range(1..))]
    array_limit: u32,
    /// Run only this cell, given by its name or number (from 0)
    #[arg(long, value_name = "CELL", requires = "resume")]
    cell: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Emit {
    /// Job array for Slurm
    Slurm,
}

impl SweepArgs {
    /// True if this process uses methods, which plugins may provide. Otherwise only the processes of the cells do.
    pub fn needs_plugins(&self) -> bool {
        self.resume.is_none() || self.cell.is_some()
    }
}

/// Runs a grid, or its unfinished cells.
pub fn sweep(args: &SweepArgs, log: &Log) -> Result<(), Failure> {
    if args.jobs == Some(0) {
        return Err(Failure::invalid("--jobs 0: expected at least 1".into()));
    }
    let (sweep, _lock) = match (&args.resume, &args.cell) {
        (Some(folder), Some(cell)) => return run_cell(folder, cell, log),
        (Some(folder), None) => {
            let (mut sweep, lock) = open(folder)?;
            let stored = sweep.plan.clone();
            sweep.plan.apply_options(&args.baseline, args.jobs)?;
            if sweep.plan != stored {
                sweep.plan.save(folder)?;
            }
            (sweep, lock)
        }
        (None, _) => begin(args, log)?,
    };
    match args.emit {
        Some(Emit::Slurm) => slurm::emit(&sweep, args.array_limit as usize),
        None if args.collect => {
            let states = cell_states::read_all(&sweep)?;
            cell_states::write(&sweep, &states)?;
            for (cell, state) in sweep.cells.iter().zip(&states) {
                if let Some(problem) = state.problem() {
                    tracing::warn!("{} {problem}", cell.name);
                }
            }
            collect(&sweep, &states)
        }
        None => run_all(&sweep),
    }
}

/// Continues the sweep in `folder`.
pub fn resume(folder: &Path, sets: &[String]) -> Result<(), Failure> {
    if let Some(set) = sets.first() {
        let reason = "configurations of a sweep's cells are fixed; resume a single cell by its run directory";
        return Err(Failure::invalid(format!("--set {set}: {reason}")));
    }
    let (sweep, _lock) = open(folder)?;
    run_all(&sweep)
}

/// Opens the sweep in `folder` and locks it.
fn open(folder: &Path) -> Result<(Sweep, fs::File), Failure> {
    // Reading the plan first ensures that no lock file is written into other folders.
    Plan::read(folder)?;
    refuse_links(folder)?;
    let lock = lock(folder)?;
    Ok((Sweep::read(folder)?, lock))
}

/// Plans a sweep and writes the plan if all its cells are valid.
fn begin(args: &SweepArgs, log: &Log) -> Result<(Sweep, fs::File), Failure> {
    let keys = |option: &str, texts: &[String]| -> Result<Vec<Axis>, Failure> {
        texts.iter().map(|text| Axis::of_key(option, text)).collect()
    };
    let mut vary = keys("--vary", &args.vary)?;
    for text in &args.vary_file {
        vary.push(Axis::of_files("--vary-file", text)?);
    }
    let order = |seed| vec!["stream.class_order=shuffled".into(), format!("stream.class_order_seed={seed}")];
    let orders = Axis::of_seeds("class_order", &args.orders, order);
    let seeds = Axis::of_seeds("seed", &args.seeds, |seed| vec![format!("seed={seed}")]);
    let mut repeat: Vec<Axis> = [orders, seeds].into_iter().filter(|axis| !axis.values.is_empty()).collect();
    repeat.extend(keys("--repeat", &args.repeat)?);
    if vary.is_empty() && repeat.is_empty() {
        let expected =
            "expected --vary, --vary-file, --seeds, --orders or --repeat; use cdl run for a single run";
        return Err(Failure::invalid(format!("nothing is varied: {expected}")));
    }
    let (configs, sets, baseline) = (args.configs.clone(), args.sets.clone(), args.baseline.clone());
    let mut plan = Plan { configs, sets, baseline, jobs: args.jobs.unwrap_or(1), vary, repeat };
    let cells = plan.resolve()?;
    let folder = match &args.out {
        Some(folder) => {
            output_paths::folder("--out", folder)?;
            folder.clone()
        }
        None => plan.default_folder()?,
    };
    // A sweep that was killed before its plan was written leaves at most a hidden lock file.
    let visible = |entry: fs::DirEntry| !entry.file_name().to_string_lossy().starts_with('.');
    let occupied = fs::read_dir(&folder).is_ok_and(|entries| entries.flatten().any(visible));
    if occupied && !is_sweep(&folder) {
        let reason = "is not a sweep, but contains files; choose another --out";
        return Err(Failure::invalid(format!("{}: {reason}", folder.display())));
    }
    cell_check::check(&folder, &cells, log)?;
    fs::create_dir_all(&folder).map_err(io(&folder))?;
    refuse_links(&folder)?;
    let lock = lock(&folder)?;
    if is_sweep(&folder) {
        plan.extend(Plan::read(&folder)?, &folder)?;
        plan.apply_options(&args.baseline, args.jobs)?;
    }
    plan.write(&folder, &cells)?;
    Ok((Sweep::read(&folder)?, lock))
}

/// Runs the unfinished cells, writes the tables, and reports cells that are still unfinished.
fn run_all(sweep: &Sweep) -> Result<(), Failure> {
    let signals = Signals::listen()?;
    let mut states = cell_states::read_all(sweep)?;
    cell_states::write(sweep, &states)?;
    let threads = (rayon::current_num_threads() / sweep.plan.jobs).max(1);
    let (folder, cells, jobs) = (sweep.folder.display(), sweep.cells.len(), sweep.plan.jobs);
    let threads_each = count(threads, "thread");
    tracing::info!("{} in {folder}, {jobs} at once with {threads_each} each", count(cells, "cell"));
    pool::run(sweep, &mut states, threads, &signals)?;
    let done = states.iter().filter(|state| **state == State::Done).count();
    if let Some((signal, code)) = signals.received() {
        let again = format!("continue with: cdl resume {}", shell_quoted(&sweep.folder));
        let done = format!("{done} of {} done, running cells were saved", count(cells, "cell"));
        return Err(Failure { message: format!("stopped by {signal}: {done}; {again}"), code });
    }
    collect(sweep, &states)?;
    let Some(mut message) = cell_states::unfinished(&sweep.folder, &states) else { return Ok(()) };
    for (cell, state) in sweep.cells.iter().zip(&states).filter(|(_, state)| **state != State::Done) {
        let other =
            if *state == State::Running { "another process is running it" } else { "saved and stopped" };
        message += &format!("\n  {}: {}", cell.name, state.reason().unwrap_or(other));
    }
    Err(Failure::working(message))
}

/// Writes tables, figure and page of the finished cells.
fn collect(sweep: &Sweep, states: &[State]) -> Result<(), Failure> {
    let summary = Summary::read(sweep, states)?;
    if summary.done() == 0 {
        tracing::warn!("no cell is done yet: no tables are written");
        return Ok(());
    }
    let left = states.iter().filter(|state| **state != State::Done).count();
    if left > 0 {
        tracing::warn!("{left} of {} not done: the tables do not contain them", count(states.len(), "cell"));
    }
    let place = |name: &str, text: &str| write_atomic(&sweep.folder.join(name), text.as_bytes());
    place("sweep.csv", &sweep_tables::csv(&summary)?)?;
    place("sweep.md", &sweep_tables::markdown(&summary))?;
    place("sweep.tex", &sweep_tables::latex(&summary))?;
    place("summary.json", &sweep_tables::json(&summary)?)?;
    let figure = sweep_page::figure(&summary);
    let svg = figure.standalone();
    place("accuracy.svg", &svg)?;
    if pdf::AVAILABLE {
        let pdf = pdf::pdf(&svg).map_err(|reason| Failure::working(format!("accuracy.pdf: {reason}")))?;
        write_atomic(&sweep.folder.join("accuracy.pdf"), &pdf)?;
    }
    place("sweep.html", &sweep_page::page(sweep, &summary, states, &figure))?;
    let end = format!("tables, figure and page are in {}\n", sweep.folder.display());
    emit(&(sweep_tables::text(&summary) + &end))
}
