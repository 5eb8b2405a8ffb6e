//! What is happening: a bar with the time left on a terminal, a line for every epoch everywhere.

use std::{io::IsTerminal, time::Duration};

use cdl_core::{EpochReport, Role, Task};
use indicatif::{ProgressBar, ProgressStyle};

use crate::logging::Log;

/// Progress through all steps of a run.
pub struct Progress {
    bar: ProgressBar,
    /// Tasks that the run does.
    tasks: usize,
}

impl Progress {
    /// For a run of `tasks` tasks and `steps` training steps, of which `done` are done.
    pub fn new(log: &Log, tasks: usize, steps: usize, done: usize, quiet: bool) -> Self {
        let bar = if quiet || !std::io::stderr().is_terminal() {
            ProgressBar::hidden()
        } else {
            log.bars.add(ProgressBar::new(steps as u64))
        };
        if let Ok(style) = ProgressStyle::with_template("{msg:24} {bar:32} {percent:>3}%  {eta} left") {
            bar.set_style(style);
        }
        bar.set_position(done as u64);
        // What was done before says nothing about the time that is left.
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
        let total = report.losses.get("loss").copied().unwrap_or(f64::NAN);
        let terms: Vec<String> = report
            .losses
            .iter()
            .filter(|(name, _)| *name != "loss")
            .map(|(name, value)| format!("{name} {value:.4}"))
            .collect();
        tracing::info!(
            "task {}/{} {:7} epoch {}/{}  loss {total:.4} ({})  accuracy {:5.1} %  lr {:.2e}  {:.*} images/s",
            report.task + 1,
            report.tasks,
            report.role.as_str(),
            report.epoch + 1,
            report.epochs,
            terms.join(", "),
            report.accuracy,
            report.lr,
            if report.images_per_second < 10.0 { 2 } else { 0 },
            report.images_per_second,
        );
    }

    /// All is done.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// A count that goes up; its line is gone when it is dropped.
pub struct Spinner {
    bar: ProgressBar,
}

impl Spinner {
    /// Of `what`.
    pub fn new(log: &Log, quiet: bool, what: &'static str) -> Self {
        Self::of(log, quiet, "{pos} {msg}, {elapsed}", what)
    }

    /// Of `what` without a number, for what cannot be counted.
    pub fn uncounted(log: &Log, quiet: bool, what: &'static str) -> Self {
        Self::of(log, quiet, "{spinner} {msg}, {elapsed}", what)
    }

    fn of(log: &Log, quiet: bool, template: &str, what: &'static str) -> Self {
        let bar = if quiet || !std::io::stderr().is_terminal() {
            ProgressBar::hidden()
        } else {
            log.bars.add(ProgressBar::no_length())
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(what);
        // Time goes on also while nothing is counted.
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar }
    }

    /// One more.
    pub fn one(&self) {
        self.bar.inc(1);
    }

    /// All is done.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.finish();
    }
}
