//! Processes of a sweep. Each cell runs in its own process, so that a crash does not affect other cells.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use cdl_core::{run::directory::read_results, system::files};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::{
    cell_process::record_failure,
    cell_states::{State, write},
    grid::Sweep,
    layout::{is_cell_locked, process_file, run_folder},
};
use crate::{
    failure::{BUSY, Failure, SIGNAL_OFFSET, io},
    plugin::loading,
    signals::{Signals, request_stop},
    terminal::{averages, count},
};

/// Time between two checks whether a process has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Bytes at the end of a log that are searched for the last error.
const LOG_TAIL: u64 = 64 << 10;

/// Process of a running cell.
struct Running {
    /// Index of the cell.
    number: usize,
    child: Child,
    /// True after the process was signalled to stop. A second signal would end the process before it has saved its run.
    stopping: bool,
    /// File with the output of the cell's processes.
    log: PathBuf,
    /// Length of the log when the process started.
    log_start: u64,
    started: Instant,
}

/// Runs all unfinished cells, `jobs` at once with `threads` each, and updates `sweep.json`. Cells that another process
/// runs are skipped. Those whose lock is free after all other cells have ended are tried once more.
pub fn run(sweep: &Sweep, states: &mut [State], threads: usize, signals: &Signals) -> Result<(), Failure> {
    let mut running = Vec::new();
    let result = run_cells(sweep, states, threads, signals, &mut running);
    if result.is_err() {
        // The sweep cannot continue, for instance on a full disk, so its cells must stop, too.
        for cell in &mut running {
            request_stop(&mut cell.child);
            let _ = cell.child.wait();
        }
    }
    result
}

/// Runs the cells. On an error, the cells that are still running are left in `running`.
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
        tracing::info!("{done} of {} already done", count(states.len(), "cell"));
    }
    let mut ended = states.len() - waiting.len();
    let mut retried = false;
    loop {
        let stop = signals.received().is_some();
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
                    log_state(sweep, number, &state, ended, Duration::ZERO);
                    state
                }
            };
            write(sweep, states)?;
        }
        if stop {
            for cell in running.iter_mut().filter(|cell| !cell.stopping) {
                cell.stopping = true;
                request_stop(&mut cell.child);
            }
        }
        if running.is_empty() {
            if stop || retried {
                return Ok(());
            }
            // Only one retry: a cell whose lock is free here may be locked by another process when it is started.
            retried = true;
            let free = |&number: &usize| {
                states[number] == State::Running && !is_cell_locked(&sweep.folder, &sweep.cells[number].name)
            };
            waiting.extend((0..states.len()).filter(free));
            continue;
        }
        sleep(POLL_INTERVAL);
        for mut cell in running.extract_if(.., |cell| !matches!(cell.child.try_wait(), Ok(None))) {
            let state = match cell.child.wait() {
                Ok(status) => outcome(sweep, status, &cell, signals.received().is_some()),
                Err(e) => State::Failed(format!("cannot wait for its process: {e}")),
            };
            ended += usize::from(state != State::Running);
            log_state(sweep, cell.number, &state, ended, cell.started.elapsed());
            states[cell.number] = state;
            write(sweep, states)?;
        }
    }
}

/// Starts the process of one cell.
fn start(sweep: &Sweep, number: usize, threads: usize) -> Result<Running, Failure> {
    let name = &sweep.cells[number].name;
    let log = process_file(&sweep.folder, name, "txt");
    let open = || {
        fs::create_dir_all(sweep.folder.join("logs"))?;
        let file = files::open_own(OpenOptions::new().create(true).append(true), &log)?;
        Ok((file.metadata()?.len(), file.try_clone()?, file))
    };
    let (log_start, out, err) = open().map_err(io(&log))?;
    let fail = |e: std::io::Error| Failure::working(format!("{name}: cannot start a process: {e}"));
    let mut command = Command::new(std::env::current_exe().map_err(fail)?);
    if loading::refused() {
        command.arg(loading::NO_PLUGINS);
    }
    command
        .args(["--threads", &threads.to_string(), "sweep", "--cell", &number.to_string(), "--resume"])
        .arg(&sweep.folder)
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err);
    // With its own process group, the cell does not receive Ctrl-C; the sweep forwards it once.
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let child = command.spawn().map_err(fail)?;
    Ok(Running { number, child, stopping: false, log, log_start, started: Instant::now() })
}

/// State of a cell after its process has ended.
fn outcome(sweep: &Sweep, status: ExitStatus, cell: &Running, stop: bool) -> State {
    match status.code() {
        Some(0) => State::Done,
        Some(code) if code == i32::from(BUSY) => State::Running,
        Some(code) if [SIGINT, SIGTERM].contains(&(code - SIGNAL_OFFSET)) => State::Stopped,
        None if stop => State::Stopped,
        // On systems without signals the cell is killed; it resumes from its last checkpoint.
        _ if stop && cfg!(not(unix)) => State::Stopped,
        _ => {
            let reason = last_error(cell).unwrap_or_else(|| describe_exit(status));
            // A killed process could not record its failure itself.
            record_failure(&sweep.folder, &sweep.cells[cell.number].name, &reason);
            State::Failed(reason)
        }
    }
}

/// Last error that the cell's process wrote to its log.
fn last_error(cell: &Running) -> Option<String> {
    let mut file = File::open(&cell.log).ok()?;
    let end = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(end.saturating_sub(LOG_TAIL).max(cell.log_start))).ok()?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    text.lines().rev().find_map(|line| line.strip_prefix("error: ")).map(String::from)
}

/// Describes the exit of a process that reported no error.
fn describe_exit(status: ExitStatus) -> String {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        let memory = if signal == 9 { " (possibly out of memory)" } else { "" };
        return format!("its process was ended by signal {signal}{memory}");
    }
    format!("its process ended with {status} and without an error message")
}

/// Logs the state of a cell that has ended or could not be started.
fn log_state(sweep: &Sweep, number: usize, state: &State, ended: usize, time: Duration) {
    let (name, cells) = (&sweep.cells[number].name, sweep.cells.len());
    match state {
        State::Done => {
            let results = read_results(&run_folder(&sweep.folder, name));
            let mut words = results.as_ref().map(averages).unwrap_or_default();
            words.push(format!("{:.1} s", time.as_secs_f64()));
            tracing::info!("{ended}/{cells} {name}: {}", words.join(", "));
        }
        State::Running => tracing::warn!("{name}: another process is running it; the other cells continue"),
        State::Stopped | State::Waiting => tracing::info!("{name}: saved and stopped"),
        State::Failed(_) | State::Unreadable(_) => {
            tracing::warn!("{ended}/{cells} {name} {}", state.problem().unwrap_or_default());
        }
    }
}
