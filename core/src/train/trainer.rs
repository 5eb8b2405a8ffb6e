//! The whole of continual distillation learning: for each task the teacher learns, then the student with the
//! teacher's help, then both are tested on everything seen so far.

use candle_core::{DType, Tensor};

use crate::{
    error::{Error, Result},
    nn::cross_entropy,
    registry,
    rng::Rng,
    train::{
        Accuracies, EpochReport, Moment, Network, Optimizer, OptimizerConfig, Passed, Position, RunState,
        ScheduleConfig, Tested, Tester, count_right,
    },
    traits::{
        Backbone, Batch, Distiller, EpochKey, LossTerm, Mode, NamedVar, Pass, Query, QuerySource, Role,
        Selection, StateDict, Taps, Task, TaskStream,
    },
};

/// How long and how fast to train.
#[derive(Debug, Clone)]
pub struct TrainSettings {
    /// Of each task, for teacher and student.
    pub epochs: usize,
    /// Images in a batch.
    pub batch_size: usize,
    /// Update rule.
    pub optimizer: OptimizerConfig,
    /// Learning rate by epoch.
    pub schedule: ScheduleConfig,
    /// Defaults of the schedule.
    pub mode: Mode,
    /// Whose frozen network makes the teacher's query; the student's is always its own.
    pub query: QuerySource,
    /// Which networks are trained and tested, in this order.
    pub roles: Vec<Role>,
}

/// What happens during a run, in order.
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
        /// What else the test has found.
        tested: &'a Tested,
    },
    /// The run is between two steps, epochs or tasks, whose own event came before.
    Between(Moment<'a>),
    /// A batch of test images is done.
    Tested,
}

/// The loss of one batch with what it is made of.
#[derive(Debug)]
pub struct BatchLoss {
    /// The scalar to minimise.
    pub total: Tensor,
    /// Its summands, weighted.
    pub terms: Vec<LossTerm>,
    /// The learner's logits over all classes, `(B, C)`.
    pub logits: Tensor,
    /// What the student learned from, if anything.
    pub teacher_logits: Option<Tensor>,
}

/// Teacher, student and distiller on their way through the tasks.
pub struct Trainer {
    /// The large network.
    pub teacher: Network,
    /// The small network.
    pub student: Network,
    /// What the student is told beyond the labels.
    pub distiller: Box<dyn Distiller>,
    /// How long and how fast.
    pub settings: TrainSettings,
    /// Source of random numbers in [`Learner::begin_task`](crate::traits::Learner::begin_task).
    pub rng: Rng,
}

impl Trainer {
    /// Runs all tasks and tells `on` what happens; an error from `on` stops the run.
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

    /// The same from where `now` says on. Networks, methods and stream must be as they were there.
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
        let mut tester = Tester::default();
        while let Some(task) = stream.tasks().get(now.position.task) {
            if now.position == Position::of_task(task.index) {
                self.begin_task(task)?;
            }
            while let Some(&role) = roles.get(now.position.phase) {
                self.learn(role, task, &mut now, stream, on)?;
            }
            self.end_task(task)?;
            let tested = &tester.test(self, task, stream, &mut now.results, &mut || on(Event::Tested))?;
            now.position = Position::of_task(task.index + 1);
            on(Event::Task { task, trainer: self, results: &now.results, tested })?;
            on(Event::Between(Moment { trainer: self, stream, state: &now, optimizer: None }))?;
        }
        Ok(now.results)
    }

    /// The epochs of one network on one task that are not done yet.
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
            for batch in stream.train_batches_from(key, batch_size, now.position.step) {
                let (batch, step) = (batch?, now.position.step);
                let loss = self.loss(role, task, &batch)?;
                // Whatever is read comes last: a GPU has its whole step by then.
                Self::update(&loss, &mut optimizer)?;
                let values = loss.values()?;
                if let Some((what, value)) = values.iter().find(|(_, value)| !value.is_finite()) {
                    let (what, value, phase) = (what.clone(), *value, role.as_str());
                    let (task, epoch, step) = (task.index + 1, epoch + 1, step + 1);
                    return Err(Error::NotFinite { what, value, task, phase, epoch, step });
                }
                let right = count_right(&loss.logits, &batch.labels, task.classes.clone())?;
                now.tally.add(&values, right, batch.len());
                now.position = now.position.next_step();
                on(Event::Step { role, task, epoch, step: (step, steps) })?;
                on(Event::Between(Moment {
                    trainer: self,
                    stream,
                    state: now,
                    optimizer: Some(&optimizer),
                }))?;
            }
            self.check_finite(role, task, epoch, steps)?;
            let of = (task, stream.tasks().len());
            on(Event::Epoch(&std::mem::take(&mut now.tally).report(role, of, epoch, epochs, lr)))?;
            now.position = now.position.next_epoch(epochs);
            let optimizer = Some(&optimizer).filter(|_| epoch + 1 < epochs);
            on(Event::Between(Moment { trainer: self, stream, state: now, optimizer }))?;
        }
        Ok(())
    }

    /// Moves what `optimizer` holds down the gradient of `loss`.
    ///
    /// # Errors
    /// Operations that have no gradient.
    pub fn update(loss: &BatchLoss, optimizer: &mut Optimizer) -> Result<()> {
        let gradients =
            tracing::debug_span!("backward").in_scope(|| registry::backward(|| loss.total.backward()))?;
        tracing::debug_span!("optimizer").in_scope(|| optimizer.step(&gradients))
    }

    /// Refuses parameters that are no finite numbers, which the loss of the last step does not show yet.
    fn check_finite(&self, role: Role, task: &Task, epoch: usize, steps: usize) -> Result<()> {
        for var in self.trainable(role) {
            let value = var.tensor().detach().to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()?;
            if !value.is_finite() {
                let (what, phase) = (var.name, role.as_str());
                let (task, epoch) = (task.index + 1, epoch + 1);
                return Err(Error::NotFinite { what, value, task, phase, epoch, step: steps });
            }
        }
        Ok(())
    }

    /// Prepares both learners for `task`.
    pub fn begin_task(&mut self, task: &Task) -> Result<()> {
        for (role, network) in [(Role::Teacher, &mut self.teacher), (Role::Student, &mut self.student)] {
            let mut rng = self.rng.derive(&format!("{}, task {}", role.as_str(), task.index));
            network.learner.begin_task(task, &mut rng)?;
        }
        Ok(())
    }

    /// Lets both learners finish `task`.
    pub fn end_task(&mut self, task: &Task) -> Result<()> {
        self.teacher.learner.end_task(task)?;
        self.student.learner.end_task(task)
    }

    /// What a phase trains.
    pub fn trainable(&self, role: Role) -> Vec<NamedVar> {
        match role {
            Role::Teacher => self.teacher.learner.trainable(),
            Role::Student => {
                let mut vars = self.student.learner.trainable();
                vars.extend(self.distiller.trainable());
                vars
            }
        }
    }

    /// The loss of one batch in the phase of `role`, over `task.classes`.
    pub fn loss(&self, role: Role, task: &Task, batch: &Batch) -> Result<BatchLoss> {
        match role {
            Role::Teacher => self.teacher_loss(task, batch),
            Role::Student => self.student_loss(task, batch),
        }
    }

    /// Cross-entropy among the task's classes and the learner's penalty.
    fn teacher_loss(&self, task: &Task, batch: &Batch) -> Result<BatchLoss> {
        let query = self.query(Role::Teacher, &batch.pixels);
        let _span = tracing::debug_span!("teacher forward").entered();
        let injection = self.teacher.learner.inject(&query, Pass::Train)?;
        let features = self.teacher.backbone.forward(&batch.pixels, &injection, &Taps::none())?;
        let logits = self.teacher.learner.logits(&features)?;
        let mut terms = vec![LossTerm::new("ce", cross_entropy(&logits, &batch.labels, &task.classes)?)];
        terms.extend(injection.penalty.map(|penalty| LossTerm::new("penalty", penalty)));
        BatchLoss::sum(terms, logits, None)
    }

    /// Weighted cross-entropy, the distiller's terms and the learner's penalty.
    fn student_loss(&self, task: &Task, batch: &Batch) -> Result<BatchLoss> {
        let queries = Queries::new(self, &batch.pixels);
        let taps = self.distiller.taps();
        let teacher = match self.distiller.needs_teacher() {
            true => {
                let query = queries.of(Role::Teacher);
                Some(self.teacher.as_teacher(&batch.pixels, query, Pass::Teach, &taps.teacher)?.output)
            }
            false => None,
        };
        let Passed { output: student, penalty, .. } = self.student.as_student(
            self.distiller.as_ref(),
            &batch.pixels,
            queries.of(Role::Student),
            Pass::Train,
            &taps.student,
        )?;
        let ce = cross_entropy(&student.logits, &batch.labels, &task.classes)?;
        let mut terms = vec![LossTerm::new("ce", (ce * self.distiller.cross_entropy_weight())?)];
        terms.extend(self.distiller.loss(&student, teacher.as_ref(), &batch.labels, task)?);
        terms.extend(penalty.map(|penalty| LossTerm::new("penalty", penalty)));
        BatchLoss::sum(terms, student.logits, teacher.map(|teacher| teacher.logits))
    }

    /// The query of `role`, which is computed when its learner asks for it.
    pub(crate) fn query<'a>(&'a self, role: Role, pixels: &'a Tensor) -> Query<'a> {
        Query::of(self.querying(role), pixels)
    }

    /// The network of `role`.
    pub fn network(&self, role: Role) -> &Network {
        match role {
            Role::Teacher => &self.teacher,
            Role::Student => &self.student,
        }
    }

    /// The frozen network that makes the query of `role`.
    pub(crate) fn querying(&self, role: Role) -> &dyn Backbone {
        let network = match (role, self.settings.query) {
            (Role::Teacher, QuerySource::Own) => &self.teacher,
            _ => &self.student,
        };
        network.backbone.as_ref()
    }

    /// Test-time logits over all classes `(B, C)`, without gradients: what `role` predicts.
    pub fn predict(&self, role: Role, pixels: &Tensor) -> Result<Tensor> {
        Ok(self.predict_with(role, pixels, &self.query(role, pixels))?.0)
    }

    /// The same with what the images took of pools of prompts.
    pub(crate) fn predict_with(
        &self,
        role: Role,
        pixels: &Tensor,
        query: &Query<'_>,
    ) -> Result<(Tensor, Vec<Selection>)> {
        match role {
            Role::Teacher => self.teacher.teacher_logits(pixels, query),
            Role::Student => self.student.student_logits(self.distiller.as_ref(), pixels, query),
        }
    }

    /// Everything trained of one network, as saved after each task; the distiller's belongs to the student.
    pub fn state(&self, role: Role) -> Result<StateDict> {
        match role {
            Role::Teacher => self.teacher.learner.state(),
            Role::Student => {
                let mut state = self.student.learner.state()?;
                state.extend(self.distiller.state()?);
                Ok(state)
            }
        }
    }

    /// Takes up one network as [`Trainer::state`] gave it during or after `task`.
    pub fn restore(&mut self, role: Role, task: &Task, state: &StateDict) -> Result<()> {
        match role {
            Role::Teacher => self.teacher.learner.restore(task, state),
            Role::Student => {
                self.student.learner.restore(task, state)?;
                self.distiller.restore(state)
            }
        }
    }
}

/// The queries of one batch; networks that share one compute it once.
pub(crate) struct Queries<'a> {
    student: Query<'a>,
    teacher: Option<Query<'a>>,
}

impl<'a> Queries<'a> {
    pub(crate) fn new(trainer: &'a Trainer, pixels: &'a Tensor) -> Self {
        let own = trainer.settings.query == QuerySource::Own;
        Self {
            student: trainer.query(Role::Student, pixels),
            teacher: own.then(|| trainer.query(Role::Teacher, pixels)),
        }
    }

    pub(crate) fn of(&self, role: Role) -> &Query<'a> {
        match (role, &self.teacher) {
            (Role::Teacher, Some(teacher)) => teacher,
            _ => &self.student,
        }
    }

    /// All of them, to be looked at and replaced.
    pub(crate) fn each(&mut self) -> impl Iterator<Item = &mut Query<'a>> {
        std::iter::once(&mut self.student).chain(&mut self.teacher)
    }
}

impl BatchLoss {
    fn sum(terms: Vec<LossTerm>, logits: Tensor, teacher_logits: Option<Tensor>) -> Result<Self> {
        for (index, LossTerm { name, value }) in terms.iter().enumerate() {
            let broken =
                |promise: String| Err(Error::Promise { plugin: format!("loss term {name}"), promise });
            if value.rank() != 0 {
                return broken(format!("a loss term is a scalar, not {:?}", value.dims()));
            }
            // `loss` is what the sum is called.
            if name == "loss" || terms[..index].iter().any(|other| other.name == *name) {
                return broken("the name of a loss term is its own".into());
            }
        }
        let mut total = terms[0].value.clone();
        for term in &terms[1..] {
            total = (total + &term.value)?;
        }
        Ok(Self { total, terms, logits: logits.detach(), teacher_logits })
    }

    /// The terms and their sum, called `loss`, as numbers.
    pub fn values(&self) -> Result<Vec<(String, f64)>> {
        let names = self.terms.iter().map(|term| term.name.clone()).chain(["loss".into()]);
        let values: Vec<Tensor> =
            self.terms.iter().map(|term| &term.value).chain([&self.total]).map(Tensor::detach).collect();
        // At once: every answer of a GPU is a wait.
        let numbers = Tensor::stack(&values, 0)?.to_dtype(DType::F64)?.to_vec1()?;
        Ok(names.zip(numbers).collect())
    }
}
