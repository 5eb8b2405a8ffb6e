//! Cost of a network: trainable parameters, and multiply-accumulate operations (MACs) of one image in training and at
//! test.
//!
//! The count includes the matrix products of the frozen networks: patch embedding, queries, keys and values, attention
//! (scores and weighted sums, with injected keys and values), projections and MLPs, for all tokens in every block. Work
//! that this program skips, for instance in the last block, is counted too, so that figures can be compared with other
//! programs. A backward pass counts each product of a frozen layer once, for the gradient of its input, since frozen
//! weights have no gradient: from the end down to the first block with a trained prompt or token, and in that block
//! down to the trained tensors. Heads, losses and the matching of queries with keys are not counted; they are about a
//! thousandth of the total.

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::{
    error::Result,
    train::Trainer,
    traits::{Lengths, Macs, Pass, Query, QuerySource, Role},
};

/// Cost of one network. MACs are for one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Number of trainable parameters. The student's include those of the distiller. A task may train only a part of
    /// them.
    #[serde(alias = "trained_numbers")]
    pub trainable_parameters: u64,
    /// MACs of a training step.
    pub training_macs: TrainingMacs,
    /// MACs of a prediction.
    pub inference_macs: InferenceMacs,
}

/// MACs of a training step, for one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainingMacs {
    /// Passes without prompts that compute the queries. 0 if no learner uses a query.
    pub query: u64,
    /// Pass of the teacher while the student learns. 0 if the distiller needs no teacher.
    pub teacher: u64,
    /// Forward pass of the network.
    pub forward: u64,
    /// Backward pass of the network.
    pub backward: u64,
    /// Sum of the above.
    pub total: u64,
}

/// MACs of a prediction, for one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InferenceMacs {
    /// Pass without prompts that computes the query. 0 if the learner uses no query.
    pub query: u64,
    /// Forward pass of the network.
    pub forward: u64,
    /// Sum of the above.
    pub total: u64,
}

impl Trainer {
    /// Returns the cost of the network of `role` in its current state.
    pub fn cost(&self, role: Role) -> Result<Cost> {
        let trainable_parameters =
            self.trainable(role).iter().map(|var| var.tensor().elem_count() as u64).sum();
        let query_macs = |used: bool, role: Role| match used {
            true => self.query_backbone(role).macs(&Lengths::default()).forward,
            false => 0,
        };
        let (Macs { forward, backward }, own_query) = self.pass_macs(role, Pass::Train)?;
        let (teacher, teacher_query) = match role {
            Role::Student if self.distiller.needs_teacher() => {
                let (macs, uses_query) = self.pass_macs(Role::Teacher, Pass::Teach)?;
                (macs.forward, uses_query)
            }
            _ => (0, false),
        };
        // A query that both networks share is computed once.
        let shared = own_query && teacher_query && self.settings.query == QuerySource::Student;
        let query = query_macs(own_query, role) + query_macs(teacher_query && !shared, Role::Teacher);
        let (test, uses_query) = self.pass_macs(role, Pass::Test)?;
        let test_query = query_macs(uses_query, role);
        Ok(Cost {
            trainable_parameters,
            training_macs: TrainingMacs {
                query,
                teacher,
                forward,
                backward,
                total: query + teacher + forward + backward,
            },
            inference_macs: InferenceMacs {
                query: test_query,
                forward: test.forward,
                total: test_query + test.forward,
            },
        })
    }

    /// Returns the MACs of one image in the network of `role`, from the shapes of its injection (the values of the
    /// query do not matter), and whether its learner uses the query.
    fn pass_macs(&self, role: Role, pass: Pass) -> Result<(Macs, bool)> {
        let network = self.network(role);
        let trainable = network.learner.trainable();
        let device = trainable.first().map_or(&Device::Cpu, |var| var.tensor().device());
        let query =
            Query::known(Tensor::ones((1, self.query_backbone(role).spec().width), DType::F32, device)?);
        let mut injection = network.learner.inject(&query, pass)?;
        if let Some(distiller) = self.distiller_of(role) {
            injection = injection.merge(distiller.inject(pass)?)?;
        }
        Ok((network.backbone.macs(&injection.lengths()?), query.was_requested()))
    }
}
