//! Position of a run, and its state between two steps.

use serde::{Deserialize, Serialize};

use crate::{
    train::{Accuracies, EpochMetrics, Optimizer, Trainer},
    traits::{Role, StateDict, TaskStream},
};

/// Next step of a run. Positions are ordered in time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// Index of the task, from 0. Equals the number of tasks when the run is finished.
    pub task: usize,
    /// Network that is trained, as an index into [`TrainSettings::roles`](crate::train::TrainSettings::roles). Equals
    /// the length of `roles` when all networks have learned the task and are to be tested.
    pub phase: usize,
    /// Index of the epoch, from 0.
    pub epoch: usize,
    /// Index of the step, from 0. Equals the number of steps after the last step, before the epoch is reported.
    pub step: usize,
}

impl Position {
    /// Returns the position at the start of a task.
    pub fn of_task(task: usize) -> Self {
        Self { task, ..Self::default() }
    }

    /// Returns the position at the start of the next epoch. A phase has `epochs` epochs.
    pub(crate) fn next_epoch(self, epochs: usize) -> Self {
        match self.epoch + 1 < epochs {
            true => Self { epoch: self.epoch + 1, step: 0, ..self },
            false => Self { phase: self.phase + 1, epoch: 0, step: 0, ..self },
        }
    }

    /// Returns the number of training steps before this position. Each task has `phases` phases of `epochs` epochs,
    /// and an epoch of task `t` has `steps(t)` steps.
    pub fn steps_before(self, phases: usize, epochs: usize, steps: impl Fn(usize) -> usize) -> usize {
        let tasks: usize = (0..self.task).map(|task| phases * epochs * steps(task)).sum();
        match self == Self::of_task(self.task) {
            true => tasks,
            false => tasks + (self.phase * epochs + self.epoch) * steps(self.task) + self.step,
        }
    }

    /// Describes the position with indices from 1: `task 2, student, epoch 1, step 3`.
    pub fn describe(self, roles: &[Role]) -> String {
        let task = format!("task {}", self.task + 1);
        match roles.get(self.phase) {
            Some(role) => {
                format!("{task}, {}, epoch {}, step {}", role.as_str(), self.epoch + 1, self.step + 1)
            }
            None => format!("{task}, test"),
        }
    }
}

/// State from which a run resumes, without the state of networks and methods.
#[derive(Debug, Clone, Default)]
pub struct RunState {
    /// Next step.
    pub position: Position,
    /// Sums over the current epoch.
    pub epoch_metrics: EpochMetrics,
    /// Accuracies after the tasks so far.
    pub results: Accuracies,
    /// State of the optimiser, if the run resumes within a phase.
    pub optimizer: Option<StateDict>,
}

/// Snapshot of a run between two steps, from which it can resume.
pub struct Snapshot<'a> {
    /// Networks and methods in their current state.
    pub trainer: &'a Trainer,
    /// Stream of the run.
    pub stream: &'a dyn TaskStream,
    /// Position, metrics and accuracies. `state.optimizer` is not up to date; use `optimizer`.
    pub state: &'a RunState,
    /// Optimiser. `None` between phases.
    pub optimizer: Option<&'a Optimizer>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Simulates a run of three tasks with 2, 3 and 1 steps per epoch.
    #[test]
    fn positions_are_ordered_and_count_every_step_once() {
        let steps = |task: usize| [2, 3, 1][task];
        for (phases, epochs) in [(1, 1), (2, 1), (2, 3)] {
            let mut positions = Vec::new();
            let mut done = 0;
            for task in 0..3 {
                let mut at = Position::of_task(task);
                while at.phase < phases {
                    for _ in 0..steps(task) {
                        assert_eq!(at.steps_before(phases, epochs, steps), done, "{at:?}");
                        positions.push(at);
                        at.step += 1;
                        done += 1;
                    }
                    positions.push(at);
                    at = at.next_epoch(epochs);
                }
                assert_eq!(at, Position { task, phase: phases, epoch: 0, step: 0 });
                assert_eq!(at.steps_before(phases, epochs, steps), done);
                positions.push(at);
            }
            let end = Position::of_task(3);
            assert_eq!(
                (end.steps_before(phases, epochs, steps), done),
                (6 * phases * epochs, 6 * phases * epochs)
            );
            positions.push(end);
            assert!(positions.windows(2).all(|pair| pair[0] < pair[1]), "{positions:?}");
        }
    }

    #[test]
    fn describe_counts_from_one() {
        let roles = [Role::Teacher, Role::Student];
        let at = Position { task: 1, phase: 1, epoch: 0, step: 2 };
        assert_eq!(at.describe(&roles), "task 2, student, epoch 1, step 3");
        assert_eq!(Position { phase: 2, ..Position::of_task(1) }.describe(&roles), "task 2, test");
    }
}
