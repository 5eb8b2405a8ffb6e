//! Progress: a bar with the time left on a terminal, a line for every epoch everywhere.

use std::time::Duration;

use cdl_core::{
    train::EpochReport,
    traits::{Role, Task},
};
use indicatif::ProgressBar;

use crate::logging::Log;

/// Progress through all steps of a run.
pub struct Progress {
    bar: ProgressBar,
    /// Tasks of the run.
    tasks: usize,
}

impl Progress {
    /// Progress of a run of `tasks` tasks and `steps` training steps, of which `done` are done.
    pub fn new(log: &Log, tasks: usize, steps: usize, done: usize) -> Self {
        let bar = log.bar(ProgressBar::new(steps as u64), "{msg:24} {bar:32} {percent:>3}%  {eta} left");
        bar.set_position(done as u64);
        // The steps of an earlier process do not count for the time that is left.
        bar.reset_eta();
        Self { bar, tasks }
    }

    /// A step is done.
    pub fn step(&self, role: Role, task: &Task, epoch: usize) {
        let task = format!("task {}/{}", task.index + 1, self.tasks);
        self.bar.set_message(format!("{task} {} epoch {}", role.as_str(), epoch + 1));
        self.bar.inc(1);
    }

    /// An epoch is done.
    pub fn epoch(&self, report: &EpochReport) {
        let EpochReport { tasks, epochs, losses, accuracy, lr, images_per_second, .. } = report;
        let (task, role, epoch) = (report.task + 1, report.role.as_str(), report.epoch + 1);
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
