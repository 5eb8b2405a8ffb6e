//! The training loop: for each task the teacher learns, then the student with the teacher's help, then both are tested
//! on every task seen so far.

use candle_core::DType;

use crate::{
    error::{Error, Result},
    train::{
        Accuracies, EpochReport, Evaluation, Evaluator, Optimizer, Position, RunState, Snapshot,
        TrainSettings, Trainer, count_right,
    },
    traits::{EpochKey, NamedVar, Role, Task, TaskStream},
};

/// Events of a run, in order.
pub enum Event<'a> {
    /// A training step is done.
    Step {
        /// Who learned.
        role: Role,
        /// Task.
        task: &'a Task,
        /// Epoch from 0.
        epoch: usize,
        /// Step from 0 and steps in the epoch.
        step: (usize, usize),
    },
    /// An epoch is done.
    Epoch(&'a EpochReport),
    /// A task is done: both networks have been tested on all tasks seen.
    Task {
        /// The task.
        task: &'a Task,
        /// The networks as they are now.
        trainer: &'a Trainer,
        /// Accuracies so far.
        results: &'a Accuracies,
        /// Confusion matrices and use of prompts.
        tested: &'a Evaluation,
    },
    /// The run is between two steps, epochs or tasks, whose own event came before.
    Between(Snapshot<'a>),
    /// A batch of test images is done.
    TestBatch,
}

impl Trainer {
    /// Runs all tasks and reports what happens to `on`; an error from `on` stops the run.
    ///
    /// # Errors
    /// Unreadable images, losses that are no finite numbers, and whatever `on` returns.
    pub fn run(
        &mut self,
        stream: &dyn TaskStream,
        on: &mut dyn FnMut(Event<'_>) -> Result<()>,
    ) -> Result<Accuracies> {
        self.run_from(RunState::default(), stream, on)
    }

    /// Continues a run from the state `now`. Networks, methods and stream must be as they were when it was saved.
    ///
    /// # Errors
    /// As [`Trainer::run`], and an optimiser's state that does not fit what is trained.
    pub fn run_from(
        &mut self,
        mut now: RunState,
        stream: &dyn TaskStream,
        on: &mut dyn FnMut(Event<'_>) -> Result<()>,
    ) -> Result<Accuracies> {
        let roles = self.settings.roles.clone();
        let mut evaluator = Evaluator::default();
        while let Some(task) = stream.tasks().get(now.position.task) {
            if now.position == Position::of_task(task.index) {
                self.begin_task(task)?;
            }
            while let Some(&role) = roles.get(now.position.phase) {
                self.learn(role, task, &mut now, stream, on)?;
            }
            self.end_task(task)?;
            let tested =
                &evaluator.test(self, task, stream, &mut now.results, &mut || on(Event::TestBatch))?;
            now.position = Position::of_task(task.index + 1);
            on(Event::Task { task, trainer: self, results: &now.results, tested })?;
            on(Event::Between(Snapshot { trainer: self, stream, state: &now, optimizer: None }))?;
        }
        Ok(now.results)
    }

    /// Trains one network on one task, from the epoch and step that `now` names.
    fn learn(
        &mut self,
        role: Role,
        task: &Task,
        now: &mut RunState,
        stream: &dyn TaskStream,
        on: &mut dyn FnMut(Event<'_>) -> Result<()>,
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
            now.tally.start();
            let key = EpochKey { task: task.index, role, epoch };
            for batch in stream.train_batches(key, batch_size, now.position.step) {
                let (batch, step) = (batch?, now.position.step);
                let loss = self.loss(role, task, &batch)?;
                // Whatever is read comes last: a GPU has its whole step by then.
                Self::update(&loss, &mut optimizer)?;
                let values = loss.values()?;
                check_finite(&values, role, task, epoch, step)?;
                let right = count_right(&loss.logits, &batch.labels, task.classes.clone())?;
                now.tally.add(&values, right, batch.len());
                now.position.step += 1;
                on(Event::Step { role, task, epoch, step: (step, steps) })?;
                let moment = Snapshot { trainer: self, stream, state: now, optimizer: Some(&optimizer) };
                on(Event::Between(moment))?;
            }
            // A last update that broke a parameter shows in no loss yet.
            check_finite(&self.sums(role)?, role, task, epoch, steps.saturating_sub(1))?;
            let of = (task, stream.tasks().len());
            on(Event::Epoch(&std::mem::take(&mut now.tally).report(role, of, epoch, epochs, lr)))?;
            now.position = now.position.next_epoch(epochs);
            let optimizer = Some(&optimizer).filter(|_| epoch + 1 < epochs);
            on(Event::Between(Snapshot { trainer: self, stream, state: now, optimizer }))?;
        }
        Ok(())
    }

    /// Sum of each trainable tensor, by name.
    fn sums(&self, role: Role) -> Result<Vec<(String, f64)>> {
        let sum = |var: NamedVar| {
            let sum = var.tensor().detach().to_dtype(DType::F64)?.sum_all()?.to_scalar()?;
            Ok((var.name, sum))
        };
        self.trainable(role).into_iter().map(sum).collect()
    }
}

/// Refuses values that are not finite numbers, after `step` (from 0) of an epoch.
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
