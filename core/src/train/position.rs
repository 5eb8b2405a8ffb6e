//! How far a run has come.

use serde::{Deserialize, Serialize};

use crate::{
    train::{Accuracies, EpochMetrics, Optimizer, Trainer},
    traits::{Role, StateDict, TaskStream},
};

/// The step that comes next; everything before it is done. Positions are ordered as a run meets them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// Task from 0; the number of tasks when the run is done.
    pub task: usize,
    /// Network that learns, as an index into [`TrainSettings::roles`](crate::train::TrainSettings::roles); their number when all have
    /// learned the task and are to be tested.
    pub phase: usize,
    /// Epoch from 0.
    pub epoch: usize,
    /// Step from 0. The number of steps when the epoch has still to be closed.
    pub step: usize,
}

impl Position {
    /// Before anything of a task.
    pub fn of_task(task: usize) -> Self {
        Self { task, ..Self::default() }
    }

    /// After the epoch, of `epochs` in a phase.
    pub(crate) fn next_epoch(self, epochs: usize) -> Self {
        match self.epoch + 1 < epochs {
            true => Self { epoch: self.epoch + 1, step: 0, ..self },
            false => Self { phase: self.phase + 1, epoch: 0, step: 0, ..self },
        }
    }

    /// Training steps before this one, where each task has `phases` phases of `epochs` epochs, and an epoch of task
    /// `t` has `steps(t)` steps.
    pub fn steps_before(self, phases: usize, epochs: usize, steps: impl Fn(usize) -> usize) -> usize {
        let tasks: usize = (0..self.task).map(|task| phases * epochs * steps(task)).sum();
        match self == Self::of_task(self.task) {
            true => tasks,
            false => tasks + (self.phase * epochs + self.epoch) * steps(self.task) + self.step,
        }
    }

    /// In words, counted from 1: `task 2, student, epoch 1, step 3`.
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

/// Everything that a run has to know to go on, but for what its networks and methods have learned.
#[derive(Debug, Clone, Default)]
pub struct RunState {
    /// Step that comes next.
    pub position: Position,
    /// Sums of the epoch at hand.
    pub tally: EpochMetrics,
    /// After the tasks so far.
    pub results: Accuracies,
    /// The optimiser's state, in the middle of a phase.
    pub optimizer: Option<StateDict>,
}

/// A run between two steps: it could be stopped here and go on later.
pub struct Snapshot<'a> {
    /// The networks as they are now.
    pub trainer: &'a Trainer,
    /// The images.
    pub stream: &'a dyn TaskStream,
    /// How far the run has come; its `optimizer` is not kept up, see below.
    pub state: &'a RunState,
    /// The optimiser, in the middle of a phase.
    pub optimizer: Option<&'a Optimizer>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks through a run of three tasks with 2, 3 and 1 steps an epoch.
    #[test]
    fn positions_come_in_order_and_every_step_counts_once() {
        let steps = |task: usize| [2, 3, 1][task];
        for (phases, epochs) in [(1, 1), (2, 1), (2, 3)] {
            let mut met = Vec::new();
            let mut done = 0;
            for task in 0..3 {
                let mut at = Position::of_task(task);
                while at.phase < phases {
                    for _ in 0..steps(task) {
                        assert_eq!(at.steps_before(phases, epochs, steps), done, "{at:?}");
                        met.push(at);
                        at.step += 1;
                        done += 1;
                    }
                    met.push(at);
                    at = at.next_epoch(epochs);
                }
                assert_eq!(at, Position { task, phase: phases, epoch: 0, step: 0 });
                assert_eq!(at.steps_before(phases, epochs, steps), done);
                met.push(at);
            }
            let end = Position::of_task(3);
            assert_eq!(
                (end.steps_before(phases, epochs, steps), done),
                (6 * phases * epochs, 6 * phases * epochs)
            );
            met.push(end);
            assert!(met.windows(2).all(|pair| pair[0] < pair[1]), "{met:?}");
        }
    }

    #[test]
    fn a_position_is_told_as_users_count() {
        let roles = [Role::Teacher, Role::Student];
        let at = Position { task: 1, phase: 1, epoch: 0, step: 2 };
        assert_eq!(at.describe(&roles), "task 2, student, epoch 1, step 3");
        assert_eq!(Position { phase: 2, ..Position::of_task(1) }.describe(&roles), "task 2, test");
    }
}
