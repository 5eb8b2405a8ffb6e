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

use cdl_core::Error;

use super::{
    Sweep,
    manifest::{self, State},
};
use crate::{Failure, signals::Signals};

/// How often it is looked whether a process has ended.
const PACE: Duration = Duration::from_millis(20);
/// As much of a log is searched for what a process said last.
const TAIL: u64 = 64 << 10;

/// A cell at work.
struct Running {
    number: usize,
    /// Its standard input is its leash: when that is closed, it saves its run and stops.
    child: Child,
    log: PathBuf,
    /// Bytes of its log that are older than its process.
    before: u64,
    since: Instant,
}

/// Runs all cells that are not done, `jobs` at once with `threads` each, and keeps the manifest.
pub fn run(sweep: &Sweep, states: &mut [State], threads: usize, signals: &Signals) -> Result<(), Failure> {
    let mut waiting: VecDeque<usize> =
        (0..states.len()).filter(|&number| states[number] != State::Done).collect();
    let mut running: Vec<Running> = Vec::new();
    let mut ended = states.len() - waiting.len();
    if ended > 0 {
        tracing::info!("{ended} of {} cells are done already", states.len());
    }
    loop {
        let stop = signals.asked().is_some();
        while !stop && running.len() < sweep.plan.jobs {
            let Some(number) = waiting.pop_front() else { break };
            running.push(start(sweep, number, threads)?);
            states[number] = State::Running;
            manifest::write(sweep, states)?;
        }
        if stop {
            running.iter_mut().for_each(|cell| drop(cell.child.stdin.take()));
        }
        if running.is_empty() {
            return Ok(());
        }
        sleep(PACE);
        let mut at = 0;
        while at < running.len() {
            let Some(status) = running[at].child.try_wait().map_err(|e| lost(sweep, &running[at], &e))?
            else {
                at += 1;
                continue;
            };
            let cell = running.swap_remove(at);
            ended += 1;
            let state = outcome(status, &cell, signals.asked().is_some());
            tell(sweep, &cell, &state, ended);
            states[cell.number] = state;
            manifest::write(sweep, states)?;
        }
    }
}

fn lost(sweep: &Sweep, cell: &Running, error: &std::io::Error) -> Failure {
    Failure::working(format!("{}: its process cannot be waited for: {error}", sweep.cells[cell.number].name))
}

/// Starts this program on one cell.
fn start(sweep: &Sweep, number: usize, threads: usize) -> Result<Running, Failure> {
    let name = &sweep.cells[number].name;
    let logs = sweep.folder.join("logs");
    let log = logs.join(format!("{name}.txt"));
    let file = fs::create_dir_all(&logs).and_then(|()| {
        let file = OpenOptions::new().create(true).append(true).open(&log)?;
        Ok((file.metadata()?.len(), file.try_clone()?, file))
    });
    let (before, out, err) = file.map_err(|source| Error::Io { file: log.clone(), source })?;
    let fail = |e: std::io::Error| Failure::working(format!("{name}: no process can be started: {e}"));
    let mut command = Command::new(std::env::current_exe().map_err(fail)?);
    command
        .args([
            "--threads",
            &threads.to_string(),
            "sweep",
            "--cell",
            &number.to_string(),
            "--leash",
            "--resume",
        ])
        .arg(&sweep.folder)
        .stdin(Stdio::piped())
        .stdout(out)
        .stderr(err);
    // Ctrl-C on a terminal reaches the sweep alone, which then tells its children in its own way.
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let child = command.spawn().map_err(fail)?;
    Ok(Running { number, child, log, before, since: Instant::now() })
}

/// What an ended process says of its cell.
fn outcome(status: ExitStatus, cell: &Running, asked: bool) -> State {
    match status.code() {
        Some(0) => State::Done,
        Some(130 | 143) | None if asked => State::Stopped,
        _ => State::Failed { reason: said(cell).unwrap_or_else(|| ending(status)) },
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

/// How a process ended that said nothing.
fn ending(status: ExitStatus) -> String {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        let memory = if signal == 9 { ", as the system does when memory runs out" } else { "" };
        return format!("its process was ended by signal {signal}{memory}");
    }
    format!("its process ended with {status} and said nothing")
}

/// One line about a cell that has ended.
fn tell(sweep: &Sweep, cell: &Running, state: &State, ended: usize) {
    let (name, count) = (&sweep.cells[cell.number].name, sweep.cells.len());
    let seconds = cell.since.elapsed().as_secs_f64();
    match state {
        State::Done => {
            tracing::info!("{ended}/{count} {name}: {}{seconds:.1} s", sweep.headline(cell.number));
        }
        State::Failed { reason } => tracing::warn!("{ended}/{count} {name} failed: {reason}"),
        _ => tracing::info!("{name}: saved and stopped"),
    }
}
