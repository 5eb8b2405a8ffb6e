//! The training loop: for each task the teacher learns, then the student with the teacher's help, then both are tested
//! on every task seen so far.

use candle_core::DType;

use crate::{
    error::{Error, Result},
    train::{
        Accuracies, EpochReport, Evaluation, Evaluator, Optimizer, Position, RunState, Snapshot,
        TrainSettings, Trainer, count_correct,
    },
    traits::{EpochKey, NamedVar, Role, Task, TaskStream},
};

/// Events of a run, in order.
pub enum Event<'a> {
    /// End of a training step.
    Step {
        /// Network that was trained.
        role: Role,
        /// Current task.
        task: &'a Task,
        /// Index of the epoch, from 0.
        epoch: usize,
        /// Index of the step, from 0, and number of steps in the epoch.
        step: (usize, usize),
    },
    /// End of an epoch.
    Epoch(&'a EpochReport),
    /// End of a task, after both networks have been tested on all tasks seen.
    Task {
        /// Finished task.
        task: &'a Task,
        /// Networks and methods in their current state.
        trainer: &'a Trainer,
        /// Accuracies so far.
        results: &'a Accuracies,
        /// Confusion matrices and usage of prompts.
        evaluation: &'a Evaluation,
    },
    /// State between two steps, epochs or tasks, from which a run can resume. Follows every `Step`, `Epoch` and `Task`
    /// event.
    Snapshot(Snapshot<'a>),
    /// End of a batch of test images.
    TestBatch,
}

impl Trainer {
    /// Runs all tasks and calls `on_event` for each event. An error of `on_event` stops the run.
    ///
    /// # Errors
    /// Unreadable images; losses or parameters that are not finite; errors of the methods and of `on_event`.
    pub fn run(
        &mut self,
        stream: &dyn TaskStream,
        on_event: &mut dyn FnMut(Event<'_>) -> Result<()>,
    ) -> Result<Accuracies> {
        self.run_from(RunState::default(), stream, on_event)
    }

    /// Resumes a run from the state `now`. The caller restores networks, methods and stream first.
    ///
    /// # Errors
    /// Errors of [`Trainer::run`], and an optimiser state that does not fit the trainable parameters.
    pub fn run_from(
        &mut self,
        mut now: RunState,
        stream: &dyn TaskStream,
        on_event: &mut dyn FnMut(Event<'_>) -> Result<()>,
    ) -> Result<Accuracies> {
        let roles = self.settings.roles.clone();
        let mut evaluator = Evaluator::default();
        while let Some(task) = stream.tasks().get(now.position.task) {
            if now.position == Position::of_task(task.index) {
                self.begin_task(task)?;
            }
            while let Some(&role) = roles.get(now.position.phase) {
                self.learn(role, task, &mut now, stream, on_event)?;
            }
            self.end_task(task)?;
            let evaluation =
                &evaluator.test(self, task, stream, &mut now.results, &mut || on_event(Event::TestBatch))?;
            now.position = Position::of_task(task.index + 1);
            on_event(Event::Task { task, trainer: self, results: &now.results, evaluation })?;
            on_event(Event::Snapshot(Snapshot { trainer: self, stream, state: &now, optimizer: None }))?;
        }
        Ok(now.results)
    }

    /// Trains one network on one task, starting at the position of `now`.
    fn learn(
        &mut self,
        role: Role,
        task: &Task,
        now: &mut RunState,
        stream: &dyn TaskStream,
        on_event: &mut dyn FnMut(Event<'_>) -> Result<()>,
    ) -> Result<()> {
        let TrainSettings { epochs, batch_size, mode, .. } = self.settings;
        let task = &Task { classes: stream.train_classes(task.index), ..*task };
        let mut optimizer = Optimizer::new(&self.settings.optimizer, self.trainable(role))?;
        if let Some(state) = now.optimizer.take() {
            optimizer.restore(&state)?;
        }
        let steps = stream.train_count(task.index) / batch_size;
        for epoch in now.position.epoch..epochs {
            let lr = self.settings.schedule.rate(self.settings.optimizer.lr, epoch, epochs, mode);
            optimizer.set_lr(lr);
            now.epoch_metrics.start();
            let key = EpochKey { task: task.index, role, epoch };
            for batch in stream.train_batches(key, batch_size, now.position.step) {
                let (batch, step) = (batch?, now.position.step);
                let loss = self.loss(role, task, &batch)?;
                // Values are read after the update has been queued, so that a GPU does not wait for the host.
                Self::update(&loss, &mut optimizer)?;
                let values = loss.values()?;
                check_finite(&values, role, task, epoch, step)?;
                let correct = count_correct(&loss.logits, &batch.labels, task.classes.clone())?;
                now.epoch_metrics.add(&values, correct, batch.len());
                now.position.step += 1;
                on_event(Event::Step { role, task, epoch, step: (step, steps) })?;
                let snapshot = Snapshot { trainer: self, stream, state: now, optimizer: Some(&optimizer) };
                on_event(Event::Snapshot(snapshot))?;
            }
            // Parameters are checked too: no loss has been computed since the last update.
            check_finite(&self.sums(role)?, role, task, epoch, steps.saturating_sub(1))?;
            if (task.index, epoch) == (0, 0) {
                warn_without_gradient(role, &optimizer);
            }
            let tasks = (task, stream.tasks().len());
            let report = std::mem::take(&mut now.epoch_metrics).report(role, tasks, epoch, epochs, lr);
            on_event(Event::Epoch(&report))?;
            now.position = now.position.next_epoch(epochs);
            let optimizer = Some(&optimizer).filter(|_| epoch + 1 < epochs);
            on_event(Event::Snapshot(Snapshot { trainer: self, stream, state: now, optimizer }))?;
        }
        Ok(())
    }

    /// Returns the sum of each trainable tensor, by name.
    fn sums(&self, role: Role) -> Result<Vec<(String, f64)>> {
        let sum = |var: NamedVar| {
            let sum = var.tensor().detach().to_dtype(DType::F64)?.sum_all()?.to_scalar()?;
            Ok((var.name, sum))
        };
        self.trainable(role).into_iter().map(sum).collect()
    }
}

/// Warns of trainable tensors that received no gradient in the first epoch. Often the method computes its loss without
/// them, or detaches them.
fn warn_without_gradient(role: Role, optimizer: &Optimizer) {
    let names = optimizer.without_gradient();
    if !names.is_empty() {
        tracing::warn!(
            "{}: no gradient reached `{}` in the first epoch, so the values do not change; check that the loss depends on \
             these trainable tensors",
            role.as_str(),
            names.join("`, `")
        );
    }
}

/// Checks that all values are finite after `step` (from 0) of an epoch.
fn check_finite(values: &[(String, f64)], role: Role, task: &Task, epoch: usize, step: usize) -> Result<()> {
    match values.iter().find(|(_, value)| !value.is_finite()) {
        None => Ok(()),
        Some((what, value)) => Err(Error::NotFinite {
            what: what.clone(),
            value: *value,
            task: task.index + 1,
            phase: role.as_str(),
            epoch: epoch + 1,
            step: step + 1,
        }),
    }
}
