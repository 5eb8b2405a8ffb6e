//! Sums over the steps of an epoch, and the report that is made of them.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::traits::{Role, Task};

/// An epoch in numbers: a line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EpochReport {
    /// Task from 0.
    pub task: usize,
    /// Number of tasks of the run, where it stops early of those that it does.
    pub tasks: usize,
    /// Who learned.
    pub role: Role,
    /// Epoch from 0.
    pub epoch: usize,
    /// Number of epochs.
    pub epochs: usize,
    /// Learning rate.
    pub lr: f64,
    /// Means over the epoch's steps by name; `loss` is the sum that was minimised.
    pub losses: BTreeMap<String, f64>,
    /// Training accuracy in percent of the learner's own head, among the task's classes, during the epoch.
    pub accuracy: f64,
    /// Training images a second.
    pub images_per_second: f64,
    /// Seconds the epoch took, without those between a stop and going on.
    pub seconds: f64,
}

/// Sums over the steps of an epoch so far.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Tally {
    losses: BTreeMap<String, f64>,
    steps: usize,
    right: usize,
    images: usize,
    /// Until the clock was started last.
    seconds: f64,
    #[serde(skip)]
    started: Option<Instant>,
}

impl Tally {
    pub(crate) fn start(&mut self) {
        self.started = Some(Instant::now());
    }

    /// Adds a step: its losses by name, and how many of its images were right.
    pub(crate) fn add(&mut self, losses: &[(String, f64)], right: usize, images: usize) {
        for (name, value) in losses {
            *self.losses.entry(name.clone()).or_default() += value;
        }
        self.right += right;
        self.images += images;
        self.steps += 1;
    }

    /// Copy of the sums with the clock stopped now.
    pub(crate) fn stopped(&self) -> Self {
        let running = self.started.map_or(0.0, |started| started.elapsed().as_secs_f64());
        Self { seconds: self.seconds + running, started: None, ..self.clone() }
    }

    /// Report of the epoch; `tasks` is the number of tasks that the run does.
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
            task: task.index,
            tasks,
            role,
            epoch,
            epochs,
            lr,
            losses: self.losses.iter().map(|(name, sum)| (name.clone(), sum / steps)).collect(),
            accuracy: 100.0 * self.right as f64 / self.images.max(1) as f64,
            images_per_second: self.images as f64 / seconds,
            seconds,
        }
    }
}
