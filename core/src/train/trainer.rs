//! Teacher, student and distiller, with the settings of their training.

use candle_core::Tensor;

use crate::{
    error::Result,
    rng::Rng,
    train::{Network, OptimizerConfig, Queries, ScheduleConfig},
    traits::{Backbone, Distiller, Mode, NamedVar, Query, QuerySource, Role, StateDict, Task},
};

/// How long and how fast to train.
#[derive(Debug, Clone)]
pub struct TrainSettings {
    /// Epochs of each task, for teacher and student.
    pub epochs: usize,
    /// Images in a batch.
    pub batch_size: usize,
    /// Update rule.
    pub optimizer: OptimizerConfig,
    /// Learning rate by epoch.
    pub schedule: ScheduleConfig,
    /// Defaults of the schedule.
    pub mode: Mode,
    /// Source of the teacher's query; the student's is always its own.
    pub query: QuerySource,
    /// Networks that are trained and tested, in this order.
    pub roles: Vec<Role>,
}

/// Teacher, student and distiller on their way through the tasks.
pub struct Trainer {
    /// The large network.
    pub teacher: Network,
    /// The small network.
    pub student: Network,
    /// Distillation methods of the student.
    pub distiller: Box<dyn Distiller>,
    /// How long and how fast.
    pub settings: TrainSettings,
    /// Source of random numbers in [`Learner::begin_task`](crate::traits::Learner::begin_task).
    pub rng: Rng,
}

impl Trainer {
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

    /// Variables that a phase trains.
    pub fn trainable(&self, role: Role) -> Vec<NamedVar> {
        let mut vars = self.network(role).learner.trainable();
        vars.extend(self.distiller_of(role).map(Distiller::trainable).unwrap_or_default());
        vars
    }

    /// Distillation methods that have a part in the network of `role`: the student's.
    pub(crate) fn distiller_of(&self, role: Role) -> Option<&dyn Distiller> {
        (role == Role::Student).then_some(self.distiller.as_ref())
    }

    /// The query of `role`, which is computed when its learner asks for it.
    pub(crate) fn query<'a>(&'a self, role: Role, pixels: &'a Tensor) -> Query<'a> {
        Query::of(self.querying(role), pixels)
    }

    /// The queries of a batch for both networks.
    pub(crate) fn queries<'a>(&'a self, pixels: &'a Tensor) -> Queries<'a> {
        let own = self.settings.query == QuerySource::Own;
        let teacher = own.then(|| self.query(Role::Teacher, pixels));
        Queries { student: self.query(Role::Student, pixels), teacher }
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
        let query = self.query(role, pixels);
        Ok(self.network(role).predict(self.distiller_of(role), pixels, &query)?.0)
    }

    /// Everything trained of one network, as saved after each task; the distiller's belongs to the student.
    pub fn state(&self, role: Role) -> Result<StateDict> {
        let mut state = self.network(role).learner.state()?;
        if let Some(distiller) = self.distiller_of(role) {
            state.extend(distiller.state()?);
        }
        Ok(state)
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
