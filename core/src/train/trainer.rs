//! Trainer: teacher, student and distiller, with the training settings.

use candle_core::Tensor;

use crate::{
    error::Result,
    rng::Rng,
    train::{Network, OptimizerConfig, Queries, ScheduleConfig},
    traits::{Backbone, Distiller, Mode, NamedVar, Query, QuerySource, Role, StateDict, Task},
};

/// Training settings.
#[derive(Debug, Clone)]
pub struct TrainSettings {
    /// Epochs of each task, for teacher and student.
    pub epochs: usize,
    /// Images in a batch.
    pub batch_size: usize,
    /// Update rule of the parameters.
    pub optimizer: OptimizerConfig,
    /// Learning rate of each epoch.
    pub schedule: ScheduleConfig,
    /// Mode, which selects defaults of the schedule.
    pub mode: Mode,
    /// Network that computes the teacher's query. The student always computes its own.
    pub query: QuerySource,
    /// Networks that are trained and tested, in this order.
    pub roles: Vec<Role>,
}

/// Teacher, student and distiller of a run.
pub struct Trainer {
    /// The large network.
    pub teacher: Network,
    /// The small network.
    pub student: Network,
    /// Distillation methods of the student.
    pub distiller: Box<dyn Distiller>,
    /// Training settings.
    pub settings: TrainSettings,
    /// Generator of random numbers for [`Learner::begin_task`](crate::traits::Learner::begin_task).
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

    /// Calls `end_task` of both learners.
    pub fn end_task(&mut self, task: &Task) -> Result<()> {
        self.teacher.learner.end_task(task)?;
        self.student.learner.end_task(task)
    }

    /// Returns the parameters that the phase of `role` trains.
    pub fn trainable(&self, role: Role) -> Vec<NamedVar> {
        let mut vars = self.network(role).learner.trainable();
        vars.extend(self.distiller_of(role).map(Distiller::trainable).unwrap_or_default());
        vars
    }

    /// Returns the distillation methods of `role`, which only the student has.
    pub(crate) fn distiller_of(&self, role: Role) -> Option<&dyn Distiller> {
        (role == Role::Student).then_some(self.distiller.as_ref())
    }

    /// Returns the query of `role`, which is computed when a learner first requests it.
    pub(crate) fn query<'a>(&'a self, role: Role, pixels: &'a Tensor) -> Query<'a> {
        Query::of(self.query_backbone(role), pixels)
    }

    /// Returns the queries of a batch for both networks.
    pub(crate) fn queries<'a>(&'a self, pixels: &'a Tensor) -> Queries<'a> {
        let own = self.settings.query == QuerySource::Own;
        let teacher = own.then(|| self.query(Role::Teacher, pixels));
        Queries { student: self.query(Role::Student, pixels), teacher }
    }

    /// Returns the network of `role`.
    pub fn network(&self, role: Role) -> &Network {
        match role {
            Role::Teacher => &self.teacher,
            Role::Student => &self.student,
        }
    }

    /// Returns the frozen network that computes the query of `role`.
    pub(crate) fn query_backbone(&self, role: Role) -> &dyn Backbone {
        let network = match (role, self.settings.query) {
            (Role::Teacher, QuerySource::Own) => &self.teacher,
            _ => &self.student,
        };
        network.backbone.as_ref()
    }

    /// Returns the logits `(B, C)` that `role` predicts at test time over all classes, without gradients.
    pub fn predict(&self, role: Role, pixels: &Tensor) -> Result<Tensor> {
        let query = self.query(role, pixels);
        Ok(self.network(role).predict(self.distiller_of(role), pixels, &query)?.0)
    }

    /// Returns the state of one network, as saved after each task. The student's state includes the distiller's.
    pub fn state(&self, role: Role) -> Result<StateDict> {
        let mut state = self.network(role).learner.state()?;
        if let Some(distiller) = self.distiller_of(role) {
            state.extend(distiller.state()?);
        }
        Ok(state)
    }

    /// Restores one network from a [`Trainer::state`] that was saved during or after `task`.
    ///
    /// # Errors
    /// Tensors that are missing or have another shape.
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
