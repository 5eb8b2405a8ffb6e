//! The processes of a sweep: a few cells at once, each in its own, so that none takes another with it.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use cdl_core::run::directory::read_results;
use signal_hook::consts::{SIGINT, SIGTERM};

use super::{
    cell_process::note_failure,
    cell_states::{State, write},
    grid::Sweep,
    layout::{is_cell_held, process_file, run_folder},
};
use crate::{
    failure::{BUSY, Failure, STOPPED, io},
    signals::{Signals, ask_to_stop},
    terminal::averages,
};

/// Time between two looks whether a process has ended.
const PACE: Duration = Duration::from_millis(20);
/// Bytes at the end of a log that are searched for the last error.
const TAIL: u64 = 64 << 10;

/// A cell at work.
struct Running {
    number: usize,
    child: Child,
    /// True once it was asked to stop; a second signal would end it before it has saved its run.
    asked: bool,
    log: PathBuf,
    /// Bytes of its log that are older than its process.
    before: u64,
    since: Instant,
}

/// Runs all cells that are not done, `jobs` at once with `threads` each, and keeps the manifest. Those that another process
/// is at are left to it; if it has ended when all others have, they are looked at once more.
pub fn run(sweep: &Sweep, states: &mut [State], threads: usize, signals: &Signals) -> Result<(), Failure> {
    let mut running = Vec::new();
    let done = run_cells(sweep, states, threads, signals, &mut running);
    if done.is_err() {
        // The sweep cannot go on, for instance on a full disk: its cells must not go on without it.
        for cell in &mut running {
            ask_to_stop(&mut cell.child);
            let _ = cell.child.wait();
        }
    }
    done
}

/// Runs the cells; those that are at work when an error ends it are left in `running`.
fn run_cells(
    sweep: &Sweep,
    states: &mut [State],
    threads: usize,
    signals: &Signals,
    running: &mut Vec<Running>,
) -> Result<(), Failure> {
    let open = |state: &State| !matches!(state, State::Done | State::Unreadable(_));
    let mut waiting: VecDeque<usize> = (0..states.len()).filter(|&number| open(&states[number])).collect();
    let done = states.iter().filter(|state| **state == State::Done).count();
    if done > 0 {
        tracing::info!("{done} of {} cells are done already", states.len());
    }
    let mut ended = states.len() - waiting.len();
    let mut looked_again = false;
    loop {
        let stop = signals.asked().is_some();
        while !stop && running.len() < sweep.plan.jobs {
            let Some(number) = waiting.pop_front() else { break };
            states[number] = match start(sweep, number, threads) {
                Ok(cell) => {
                    running.push(cell);
                    State::Running
                }
                Err(failure) => {
                    ended += 1;
                    let state = State::Failed(failure.message);
                    tell(sweep, number, &state, ended, Duration::ZERO);
                    state
                }
            };
            write(sweep, states)?;
        }
        if stop {
            for cell in running.iter_mut().filter(|cell| !cell.asked) {
                cell.asked = true;
                ask_to_stop(&mut cell.child);
            }
        }
        if running.is_empty() {
            if stop || looked_again {
                return Ok(());
            }
            // Once: what looks free here may be taken for the process that is to run it.
            looked_again = true;
            let free = |&number: &usize| {
                states[number] == State::Running && !is_cell_held(&sweep.folder, &sweep.cells[number].name)
            };
            waiting.extend((0..states.len()).filter(free));
            continue;
        }
        sleep(PACE);
        for mut cell in running.extract_if(.., |cell| !matches!(cell.child.try_wait(), Ok(None))) {
            let state = match cell.child.wait() {
                Ok(status) => outcome(sweep, status, &cell, signals.asked().is_some()),
                Err(e) => State::Failed(format!("its process cannot be waited for: {e}")),
            };
            ended += usize::from(state != State::Running);
            tell(sweep, cell.number, &state, ended, cell.since.elapsed());
            states[cell.number] = state;
            write(sweep, states)?;
        }
    }
}

/// Starts this program on one cell.
fn start(sweep: &Sweep, number: usize, threads: usize) -> Result<Running, Failure> {
    let name = &sweep.cells[number].name;
    let log = process_file(&sweep.folder, name, "txt");
    let open = || {
        fs::create_dir_all(sweep.folder.join("logs"))?;
        let file = OpenOptions::new().create(true).append(true).open(&log)?;
        Ok((file.metadata()?.len(), file.try_clone()?, file))
    };
    let (before, out, err) = open().map_err(io(&log))?;
    let fail = |e: std::io::Error| Failure::working(format!("{name}: no process can be started: {e}"));
    let mut command = Command::new(std::env::current_exe().map_err(fail)?);
    command
        .args(["--threads", &threads.to_string(), "sweep", "--cell", &number.to_string(), "--resume"])
        .arg(&sweep.folder)
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err);
    // Ctrl-C on a terminal reaches the sweep alone, which passes it on once.
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let child = command.spawn().map_err(fail)?;
    Ok(Running { number, child, asked: false, log, before, since: Instant::now() })
}

/// State of a cell after its process has ended.
fn outcome(sweep: &Sweep, status: ExitStatus, cell: &Running, asked: bool) -> State {
    match status.code() {
        Some(0) => State::Done,
        Some(code) if code == i32::from(BUSY) => State::Running,
        Some(code) if [SIGINT, SIGTERM].contains(&(code - STOPPED)) => State::Stopped,
        None if asked => State::Stopped,
        // Without signals a cell is ended as it is; its last checkpoint is where it goes on.
        _ if asked && cfg!(not(unix)) => State::Stopped,
        _ => {
            let reason = said(cell).unwrap_or_else(|| ending(status));
            // One that was killed could not.
            note_failure(&sweep.folder, &sweep.cells[cell.number].name, &reason);
            State::Failed(reason)
        }
    }
}

/// The last error in a cell's log, if its process wrote one.
fn said(cell: &Running) -> Option<String> {
    let mut file = File::open(&cell.log).ok()?;
    let end = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(end.saturating_sub(TAIL).max(cell.before))).ok()?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    text.lines().rev().find_map(|line| line.strip_prefix("error: ")).map(String::from)
}

/// End of a process that reported no error, in words.
fn ending(status: ExitStatus) -> String {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        let memory = if signal == 9 { ", as the system does when memory runs out" } else { "" };
        return format!("its process was ended by signal {signal}{memory}");
    }
    format!("its process ended with {status} and said nothing")
}

/// Reports a cell that has ended, or could not be begun, in one line.
fn tell(sweep: &Sweep, number: usize, state: &State, ended: usize, took: Duration) {
    let (name, count) = (&sweep.cells[number].name, sweep.cells.len());
    match state {
        State::Done => {
            let results = read_results(&run_folder(&sweep.folder, name));
            let mut words = results.as_ref().map(averages).unwrap_or_default();
            words.push(format!("{:.1} s", took.as_secs_f64()));
            tracing::info!("{ended}/{count} {name}: {}", words.join(", "));
        }
        State::Running => tracing::warn!("{name}: another process is at it; the others go on"),
        State::Stopped | State::Waiting => tracing::info!("{name}: saved and stopped"),
        State::Failed(_) | State::Unreadable(_) => {
            tracing::warn!("{ended}/{count} {name} {}", state.trouble().unwrap_or_default());
        }
    }
}
