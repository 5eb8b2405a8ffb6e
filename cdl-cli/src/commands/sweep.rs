//! `cdl sweep`: a grid of runs, what they have in common, and how they differ.

use std::{
    fs,
    path::{Path, PathBuf},
};

use cdl_core::{run::directory::lock, system::atomic::write_atomic};
use clap::{Args, ValueEnum};

use crate::{
    failure::{Failure, io},
    logging::Log,
    output_place,
    signals::Signals,
    sweep::{
        axis::Axis,
        cell_process::run_cell,
        cell_states::{self, State},
        grid::Sweep,
        layout::is_sweep,
        plan::Plan,
        pool, slurm,
        summary::Summary,
        sweep_page, sweep_tables,
    },
    terminal::{count, emit, shell},
};

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
    /// Combination that the others are compared with; may be repeated [default: that of before, or the first]
    #[arg(long, value_name = "KEY=VALUE")]
    baseline: Vec<String>,
    /// Cells that run at once; the threads are shared out among them [default: as before, or 1]
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
    /// Run one cell, by its name or counted from 0, in this process
    #[arg(long, value_name = "N", requires = "resume")]
    cell: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Emit {
    /// A job array of Slurm
    Slurm,
}

/// Runs a grid, or what is left of it.
pub fn sweep(args: &SweepArgs, log: &Log) -> Result<(), Failure> {
    if args.jobs == Some(0) {
        return Err(Failure::invalid("--jobs 0: expected at least 1".into()));
    }
    let (sweep, _lock) = match (&args.resume, &args.cell) {
        (Some(folder), Some(cell)) => return run_cell(folder, cell, log),
        (Some(folder), None) => {
            let (mut sweep, lock) = open(folder)?;
            let before = sweep.plan.clone();
            sweep.plan.settle(&args.baseline, args.jobs)?;
            if sweep.plan != before {
                sweep.plan.save(folder)?;
            }
            (sweep, lock)
        }
        (None, _) => begin(args)?,
    };
    match args.emit {
        Some(Emit::Slurm) => slurm::emit(&sweep),
        None if args.collect => {
            let states = cell_states::look(&sweep)?;
            cell_states::write(&sweep, &states)?;
            for (cell, state) in sweep.cells.iter().zip(&states) {
                if let Some(trouble) = state.trouble() {
                    tracing::warn!("{} {trouble}", cell.name);
                }
            }
            collect(&sweep, &states)
        }
        None => work(&sweep),
    }
}

/// Goes on with the sweep in `folder`.
pub fn resume(folder: &Path, sets: &[String]) -> Result<(), Failure> {
    if let Some(set) = sets.first() {
        let reason = "the cells of a sweep keep their configurations; resume a cell by its own directory";
        return Err(Failure::invalid(format!("--set {set}: {reason}")));
    }
    let (sweep, _lock) = open(folder)?;
    work(&sweep)
}

/// The sweep in `folder`, which no other process works on then.
fn open(folder: &Path) -> Result<(Sweep, fs::File), Failure> {
    // Nothing is written to what is no sweep.
    Plan::read(folder)?;
    let lock = lock(folder)?;
    Ok((Sweep::read(folder)?, lock))
}

/// Plans a sweep, and writes the plan once all of it holds.
fn begin(args: &SweepArgs) -> Result<(Sweep, fs::File), Failure> {
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
            "expected --vary, --vary-file, --seeds, --orders or --repeat; one run is made by cdl run";
        return Err(Failure::invalid(format!("nothing is varied: {expected}")));
    }
    let (configs, sets, baseline) = (args.configs.clone(), args.sets.clone(), args.baseline.clone());
    let mut plan = Plan { configs, sets, baseline, jobs: args.jobs.unwrap_or(1), vary, repeat };
    let cells = plan.resolve()?;
    let folder = match &args.out {
        Some(folder) => {
            output_place::folder("--out", folder)?;
            folder.clone()
        }
        None => plan.default_folder()?,
    };
    // Of a sweep that was killed before its plan was written, there is a lock at most.
    let visible = |entry: fs::DirEntry| !entry.file_name().to_string_lossy().starts_with('.');
    let occupied = fs::read_dir(&folder).is_ok_and(|entries| entries.flatten().any(visible));
    if occupied && !is_sweep(&folder) {
        let reason = "holds something that is not a sweep; choose another --out";
        return Err(Failure::invalid(format!("{}: {reason}", folder.display())));
    }
    fs::create_dir_all(&folder).map_err(io(&folder))?;
    let lock = lock(&folder)?;
    if is_sweep(&folder) {
        plan.continues(Plan::read(&folder)?, &folder)?;
        plan.settle(&args.baseline, args.jobs)?;
    }
    plan.write(&folder, &cells)?;
    Ok((Sweep::read(&folder)?, lock))
}

/// Runs what is not done, collects, and names what is left.
fn work(sweep: &Sweep) -> Result<(), Failure> {
    let signals = Signals::listen()?;
    let mut states = cell_states::look(sweep)?;
    cell_states::write(sweep, &states)?;
    let threads = (rayon::current_num_threads() / sweep.plan.jobs).max(1);
    let (folder, cells, jobs) = (sweep.folder.display(), sweep.cells.len(), sweep.plan.jobs);
    let threads_each = count(threads, "thread");
    tracing::info!("{} in {folder}, {jobs} at once with {threads_each} each", count(cells, "cell"));
    pool::run(sweep, &mut states, threads, &signals)?;
    let done = states.iter().filter(|state| **state == State::Done).count();
    if let Some((signal, code)) = signals.asked() {
        let again = format!("go on with: cdl resume {}", shell(&sweep.folder));
        let done = format!("{done} of {cells} cells are done, those at work were saved");
        return Err(Failure { message: format!("stopped by {signal}: {done}; {again}"), code });
    }
    collect(sweep, &states)?;
    let Some(mut left) = cell_states::what_is_left(&sweep.folder, &states) else { return Ok(()) };
    for (cell, state) in sweep.cells.iter().zip(&states).filter(|(_, state)| **state != State::Done) {
        let other = if *state == State::Running { "another process is at it" } else { "saved and stopped" };
        left += &format!("\n  {}: {}", cell.name, state.reason().unwrap_or(other));
    }
    Err(Failure::working(left))
}

/// Writes tables, figure and page of all cells that are done.
fn collect(sweep: &Sweep, states: &[State]) -> Result<(), Failure> {
    let summary = Summary::read(sweep, states)?;
    if summary.done() == 0 {
        tracing::warn!("no cell is done yet: there is nothing to tabulate");
        return Ok(());
    }
    let left = states.iter().filter(|state| **state != State::Done).count();
    if left > 0 {
        tracing::warn!("{left} of {} cells are not done: the tables are without them", states.len());
    }
    let place = |name: &str, text: &str| write_atomic(&sweep.folder.join(name), text.as_bytes());
    place("sweep.csv", &sweep_tables::csv(&summary)?)?;
    place("sweep.md", &sweep_tables::markdown(&summary))?;
    place("sweep.tex", &sweep_tables::latex(&summary))?;
    place("summary.json", &sweep_tables::json(&summary)?)?;
    let figure = sweep_page::figure(&summary);
    place("accuracy.svg", &figure.standalone())?;
    place("sweep.html", &sweep_page::page(sweep, &summary, states, &figure))?;
    let end = format!("tables, figure and page are in {}\n", sweep.folder.display());
    emit(&(sweep_tables::text(&summary) + &end))
}
