//! Progress of a run: a bar on terminals, a line per minute elsewhere, and a line for every epoch.

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

/// Time between two lines about the steps of an epoch, where no bar is shown.
const LINE_INTERVAL: Duration = Duration::from_secs(60);

/// Progress through all steps of a run.
pub struct Progress {
    bar: ProgressBar,
    /// Number of tasks of the run.
    tasks: usize,
    /// Time of the last line.
    last_line: Cell<Instant>,
}

impl Progress {
    /// Progress of a run of `tasks` tasks and `steps` training steps, of which `done` are done.
    pub fn new(log: &Log, tasks: usize, steps: usize, done: usize) -> Self {
        let bar = log.bar(ProgressBar::new(steps as u64), "{msg:24} {bar:32} {percent:>3}%  {eta} left");
        bar.set_position(done as u64);
        // Steps of an earlier process must not enter the estimate of the remaining time.
        bar.reset_eta();
        Self { bar, tasks, last_line: Cell::new(Instant::now()) }
    }

    /// Reports that step `step` (from 0) of the `steps` of an epoch is done.
    pub fn step(&self, role: Role, task: &Task, epoch: usize, (step, steps): (usize, usize)) {
        let place = format!("task {}/{} {} epoch {}", task.index + 1, self.tasks, role.as_str(), epoch + 1);
        if self.bar.is_hidden() && self.last_line.get().elapsed() >= LINE_INTERVAL {
            tracing::info!("{place} step {}/{steps}", step + 1);
            self.last_line.set(Instant::now());
        }
        self.bar.set_message(place);
        self.bar.inc(1);
    }

    /// Reports that an epoch is done.
    pub fn epoch(&self, report: &EpochReport) {
        self.last_line.set(Instant::now());
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

    /// Removes the bar at the end of the run.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Counter on the terminal. Dropping the counter removes its line.
pub struct Spinner(ProgressBar);

impl Spinner {
    /// Shows `text` and the elapsed time; `{pos}` in the text is the count.
    pub fn new(log: &Log, text: &str) -> Self {
        let bar = log.bar(ProgressBar::no_length(), &format!("{text}, {{elapsed}}"));
        // Keeps the elapsed time running while nothing is counted.
        bar.enable_steady_tick(Duration::from_millis(200));
        Self(bar)
    }

    /// Adds one to the count.
    pub fn increment(&self) {
        self.0.inc(1);
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
