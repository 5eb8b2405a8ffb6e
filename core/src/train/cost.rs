//! Cost of a network: numbers trained, and multiply-adds (MACs) of one image in training and at test.
//!
//! Counted are the matrix products of the frozen networks: patch embedding, queries, keys and values, attention (scores and
//! weighted sums, injected rows included), projections and MLPs, of all tokens in every block. What this program saves of
//! that, in the last block for instance, is not taken off, so that figures compare with those of other programs. A backward
//! pass counts each product of a frozen layer once, for the gradient of its input, since weights have none: from the end down
//! to the first block with a trained prompt or token, and in that block down to what is trained. Heads, losses and the
//! matching of queries with keys are left out; they are a thousandth.

use std::cell::Cell;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::traits::Lengths;
use crate::traits::Macs;
use crate::{
    error::Result,
    train::Trainer,
    traits::{Pass, Query, QuerySource, Role},
};

/// Cost of one network, MACs for one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Numbers that the optimiser holds, the distiller's with the student's; a task may train a part of them.
    pub trained_numbers: u64,
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

/// One pass of a network: what it costs, and whether its learner asked for the query.
struct Passage {
    macs: Macs,
    asked: bool,
}

impl Trainer {
    /// Cost of the network of `role` as it is now.
    ///
    /// # Errors
    /// Methods that cannot say what they inject.
    pub fn cost(&self, role: Role) -> Result<Cost> {
        let numbers = self.trainable(role).iter().map(|var| var.tensor().elem_count() as u64).sum();
        let own = self.passage(role, Pass::Train)?;
        let teacher = match role {
            Role::Student if self.distiller.needs_teacher() => {
                Some(self.passage(Role::Teacher, Pass::Teach)?)
            }
            _ => None,
        };
        let asks = |passage: &Option<Passage>| passage.as_ref().is_some_and(|passage| passage.asked);
        let query = match (own.asked, asks(&teacher)) {
            // Networks that share a query compute it once.
            (true, true) if self.settings.query == QuerySource::Student => self.query_macs(role),
            (own, teacher) => {
                let of = |asked: bool, role: Role| if asked { self.query_macs(role) } else { 0 };
                of(own, role) + of(teacher, Role::Teacher)
            }
        };
        let (teacher, Macs { forward, backward }) =
            (teacher.map_or(0, |teacher| teacher.macs.forward), own.macs);
        let test = self.passage(role, Pass::Test)?;
        let test_query = if test.asked { self.query_macs(role) } else { 0 };
        Ok(Cost {
            trained_numbers: numbers,
            training_macs: TrainingMacs {
                query,
                teacher,
                forward,
                backward,
                total: query + teacher + forward + backward,
            },
            inference_macs: InferenceMacs {
                query: test_query,
                forward: test.macs.forward,
                total: test_query + test.macs.forward,
            },
        })
    }

    /// The pass that makes the query of `role`.
    fn query_macs(&self, role: Role) -> u64 {
        self.querying(role).macs(&Lengths::default()).forward
    }

    /// One image through the network of `role`, as its methods say without computing it: any query will do.
    fn passage(&self, role: Role, pass: Pass) -> Result<Passage> {
        let network = self.network(role);
        let trainable = network.learner.trainable();
        let device = trainable.first().map_or(&Device::Cpu, |var| var.tensor().device());
        let asked = Cell::new(false);
        let ones = Tensor::ones((1, self.querying(role).spec().width), DType::F32, device)?;
        let query = Query::watched(ones, &asked);
        let mut injection = network.learner.inject(&query, pass)?;
        if role == Role::Student {
            injection = injection.merge(self.distiller.inject(pass)?)?;
        }
        let macs = network.backbone.macs(&injection.lengths()?);
        Ok(Passage { macs, asked: asked.get() })
    }
}
