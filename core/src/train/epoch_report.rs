//! Metrics of an epoch: sums over its steps, and the report in `metrics.jsonl`.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::traits::{Role, Task};

/// Metrics of one epoch: a line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EpochReport {
    /// Version of the format of this line. Lines without this key have version 1, where `task` and `epoch` count from
    /// 0.
    #[serde(default = "first_format")]
    #[schemars(extend("default" = EpochReport::FORMAT))]
    pub format: u32,
    /// Number of the task, from 1.
    pub task: usize,
    /// Number of tasks of the run, at most `stream.max_tasks`.
    pub tasks: usize,
    /// Network that was trained.
    pub role: Role,
    /// Number of the epoch within its task, from 1.
    pub epoch: usize,
    /// Epochs per task.
    pub epochs: usize,
    /// Learning rate.
    pub lr: f64,
    /// Means over the steps of the epoch, by name: `loss`, the minimised sum, and its weighted terms.
    pub losses: BTreeMap<String, f64>,
    /// Training accuracy in percent during the epoch, of the learner's own head, among the classes of the task.
    pub accuracy: f64,
    /// Training images per second.
    pub images_per_second: f64,
    /// Duration of the epoch in seconds, without the time between a stop and a resume.
    pub seconds: f64,
}

fn first_format() -> u32 {
    1
}

impl EpochReport {
    /// Current version of the format.
    pub const FORMAT: u32 = 2;

    /// Converts the report to the current format.
    pub(crate) fn updated(mut self) -> Self {
        if self.format == 1 {
            self.task += 1;
            self.epoch += 1;
            self.format = Self::FORMAT;
        }
        self
    }
}

/// Sums over the steps of an epoch so far.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct EpochMetrics {
    losses: BTreeMap<String, f64>,
    steps: usize,
    /// Number of correctly classified images.
    #[serde(rename = "right")]
    correct: usize,
    images: usize,
    /// Seconds spent on the epoch before the last call of [`EpochMetrics::start`].
    seconds: f64,
    #[serde(skip)]
    started: Option<Instant>,
}

impl EpochMetrics {
    /// Starts the clock.
    pub(crate) fn start(&mut self) {
        self.started = Some(Instant::now());
    }

    /// Adds a step: its losses by name, and the number of correctly classified images.
    pub(crate) fn add(&mut self, losses: &[(String, f64)], correct: usize, images: usize) {
        for (name, value) in losses {
            *self.losses.entry(name.clone()).or_default() += value;
        }
        self.correct += correct;
        self.images += images;
        self.steps += 1;
    }

    /// Returns a copy of the sums with the clock stopped.
    pub(crate) fn stopped(&self) -> Self {
        let running = self.started.map_or(0.0, |started| started.elapsed().as_secs_f64());
        Self { seconds: self.seconds + running, started: None, ..self.clone() }
    }

    /// Returns the report of the epoch. `tasks` is the number of tasks of the run.
    pub(crate) fn report(
        &self,
        role: Role,
        (task, tasks): (&Task, usize),
        epoch: usize,
        epochs: usize,
        lr: f64,
    ) -> EpochReport {
        let seconds = self.stopped().seconds.max(Duration::from_nanos(1).as_secs_f64());
        let steps = self.steps.max(1) as f64;
        EpochReport {
            format: EpochReport::FORMAT,
            task: task.index + 1,
            tasks,
            role,
            epoch: epoch + 1,
            epochs,
            lr,
            losses: self.losses.iter().map(|(name, sum)| (name.clone(), sum / steps)).collect(),
            accuracy: 100.0 * self.correct as f64 / self.images.max(1) as f64,
            images_per_second: self.images as f64 / seconds,
            seconds,
        }
    }
}
