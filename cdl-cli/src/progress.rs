//! Progress of a run: a bar on a terminal, elsewhere a line now and then, and a line for every epoch.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use cdl_core::{
    train::EpochReport,
    traits::{Role, Task},
};
use indicatif::ProgressBar;

use crate::logging::Log;

/// Time between two lines about the steps of an epoch, where there is no terminal for a bar.
const QUIET_FOR: Duration = Duration::from_secs(60);

/// Progress through all steps of a run.
pub struct Progress {
    bar: ProgressBar,
    /// Number of tasks of the run.
    tasks: usize,
    /// Time of the last line.
    said: Cell<Instant>,
}

impl Progress {
    /// Progress of a run of `tasks` tasks and `steps` training steps, of which `done` are done.
    pub fn new(log: &Log, tasks: usize, steps: usize, done: usize) -> Self {
        let bar = log.bar(ProgressBar::new(steps as u64), "{msg:24} {bar:32} {percent:>3}%  {eta} left");
        bar.set_position(done as u64);
        // The steps of an earlier process do not count for the time that is left.
        bar.reset_eta();
        Self { bar, tasks, said: Cell::new(Instant::now()) }
    }

    /// A step is done: `step`, from 0, of the steps of the epoch.
    pub fn step(&self, role: Role, task: &Task, epoch: usize, (step, steps): (usize, usize)) {
        let place = format!("task {}/{} {} epoch {}", task.index + 1, self.tasks, role.as_str(), epoch + 1);
        if self.bar.is_hidden() && self.said.get().elapsed() >= QUIET_FOR {
            tracing::info!("{place} step {}/{steps}", step + 1);
            self.said.set(Instant::now());
        }
        self.bar.set_message(place);
        self.bar.inc(1);
    }

    /// An epoch is done.
    pub fn epoch(&self, report: &EpochReport) {
        self.said.set(Instant::now());
        let EpochReport { tasks, epochs, losses, accuracy, lr, images_per_second, .. } = report;
        let (task, role, epoch) = (report.task, report.role.as_str(), report.epoch);
        let total = losses.get("loss").copied().unwrap_or(f64::NAN);
        let terms = losses.iter().filter(|(name, _)| *name != "loss");
        let terms: Vec<String> = terms.map(|(name, value)| format!("{name} {value:.4}")).collect();
        let (terms, digits) = (terms.join(", "), if *images_per_second < 10.0 { 2 } else { 0 });
        tracing::info!(
            "task {task}/{tasks} {role:7} epoch {epoch}/{epochs}  loss {total:.4} ({terms})  accuracy {accuracy:5.1} %  \
             lr {lr:.2e}  {images_per_second:.digits$} images/s"
        );
    }

    /// All is done.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// A count on the terminal; its line is removed when it is dropped.
pub struct Spinner(ProgressBar);

impl Spinner {
    /// Shows `what` with the time; `{pos}` in it is the count.
    pub fn new(log: &Log, what: &str) -> Self {
        let bar = log.bar(ProgressBar::no_length(), &format!("{what}, {{elapsed}}"));
        // The elapsed time goes on while nothing is counted.
        bar.enable_steady_tick(Duration::from_millis(200));
        Self(bar)
    }

    /// Counts one more.
    pub fn one(&self) {
        self.0.inc(1);
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
