//! Cost of a network: trainable parameters, and multiply-accumulate operations (MACs) of one image in training and at test.
//!
//! Counted are the matrix products of the frozen networks: patch embedding, queries, keys and values, attention (scores and
//! weighted sums, injected rows included), projections and MLPs, of all tokens in every block. What this program saves of
//! that, in the last block for instance, is not taken off, so that figures compare with those of other programs. A backward
//! pass counts each product of a frozen layer once, for the gradient of its input, since weights have none: from the end down
//! to the first block with a trained prompt or token, and in that block down to what is trained. Heads, losses and the
//! matching of queries with keys are left out; they are a thousandth.

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::{
    error::Result,
    train::Trainer,
    traits::{Lengths, Macs, Pass, Query, QuerySource, Role},
};

/// Cost of one network, MACs for one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Numbers that the optimiser holds, the distiller's with the student's; a task may train a part of them.
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
    /// Passes without prompts that make the queries; 0 where no learner asks for one.
    pub query: u64,
    /// The teacher's pass while the student learns; 0 where the distiller needs none.
    pub teacher: u64,
    /// The network's own pass.
    pub forward: u64,
    /// Its gradients.
    pub backward: u64,
    /// All of these.
    pub total: u64,
}

/// MACs of a prediction, for one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InferenceMacs {
    /// The pass without prompts that makes the query; 0 where the learner asks for none.
    pub query: u64,
    /// The network's pass.
    pub forward: u64,
    /// Both.
    pub total: u64,
}

impl Trainer {
    /// Cost of the network of `role` as it is now.
    pub fn cost(&self, role: Role) -> Result<Cost> {
        let numbers = self.trainable(role).iter().map(|var| var.tensor().elem_count() as u64).sum();
        let query_of = |asked: bool, role: Role| match asked {
            true => self.querying(role).macs(&Lengths::default()).forward,
            false => 0,
        };
        let (Macs { forward, backward }, own_asks) = self.passage(role, Pass::Train)?;
        let (teacher, teacher_asks) = match role {
            Role::Student if self.distiller.needs_teacher() => {
                let (macs, asks) = self.passage(Role::Teacher, Pass::Teach)?;
                (macs.forward, asks)
            }
            _ => (0, false),
        };
        // Networks that share a query compute it once.
        let shared = own_asks && teacher_asks && self.settings.query == QuerySource::Student;
        let query = query_of(own_asks, role) + query_of(teacher_asks && !shared, Role::Teacher);
        let (test, test_asks) = self.passage(role, Pass::Test)?;
        let test_query = query_of(test_asks, role);
        Ok(Cost {
            trainable_parameters: numbers,
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

    /// Cost of one image through the network of `role`, as its methods say without computing it (any query will do), and
    /// whether its learner asked for the query.
    fn passage(&self, role: Role, pass: Pass) -> Result<(Macs, bool)> {
        let network = self.network(role);
        let trainable = network.learner.trainable();
        let device = trainable.first().map_or(&Device::Cpu, |var| var.tensor().device());
        let query = Query::known(Tensor::ones((1, self.querying(role).spec().width), DType::F32, device)?);
        let mut injection = network.learner.inject(&query, pass)?;
        if let Some(distiller) = self.distiller_of(role) {
            injection = injection.merge(distiller.inject(pass)?)?;
        }
        Ok((network.backbone.macs(&injection.lengths()?), query.was_requested()))
    }
}
