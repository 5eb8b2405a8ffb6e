//! Testing: the accuracy of both networks on every task seen so far.

use std::collections::HashMap;

use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};

use crate::{
    error::Result,
    metrics::{AccuracyMatrix, Confusion, PoolUse, UseTally},
    train::Trainer,
    traits::{ByRole, Query, Role, Task, TaskStream},
};

/// Accuracy matrices of both networks; that of a network that is not trained stays empty.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Accuracies {
    /// Matrix of the teacher.
    pub teacher: AccuracyMatrix,
    /// Matrix of the student.
    pub student: AccuracyMatrix,
}

impl Accuracies {
    /// The matrix of one network.
    pub fn of(&self, role: Role) -> &AccuracyMatrix {
        match role {
            Role::Teacher => &self.teacher,
            Role::Student => &self.student,
        }
    }

    fn of_mut(&mut self, role: Role) -> &mut AccuracyMatrix {
        match role {
            Role::Teacher => &mut self.teacher,
            Role::Student => &mut self.student,
        }
    }
}

/// Confusion matrices of the networks that were tested.
pub type Confusions = Vec<(Role, Confusion)>;

/// Results of a test besides accuracies.
#[derive(Debug, Default)]
pub struct Tested {
    /// Confusion matrix of each network.
    pub confusions: Confusions,
    /// Prompts that the images took, by pool; none where a network's methods do not choose.
    pub prompt_use: ByRole<Vec<PoolUse>>,
}

/// Tests networks task after task. Test images and frozen networks never change, so their queries are computed the
/// first time and kept, a row of numbers for each image.
#[derive(Debug, Default)]
pub struct Tester {
    /// Queries by task and batch, in the order of [`Queries::each`](super::queries::Queries::each); `None` where no learner asked.
    queries: HashMap<(usize, usize), Vec<Option<Tensor>>>,
    /// Test images left out when they were computed: one more, and all that follow stand elsewhere.
    skipped: usize,
}

impl Tester {
    /// Adds a row to the accuracy matrices: every task up to `task`, over all classes seen, without task identity.
    /// A tester belongs to one trainer and one stream. `on_batch` is called after every batch.
    ///
    /// # Errors
    /// Unreadable images, and whatever `on_batch` returns.
    pub fn test(
        &mut self,
        trainer: &Trainer,
        task: &Task,
        stream: &dyn TaskStream,
        results: &mut Accuracies,
        on_batch: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Tested> {
        let roles = &trainer.settings.roles;
        let mut rows = vec![Vec::new(); roles.len()];
        let names = stream.classes().get(..task.seen()).unwrap_or(stream.classes());
        let mut confusions: Confusions = roles.iter().map(|&role| (role, Confusion::new(names))).collect();
        let mut uses: Vec<Option<UseTally>> = roles.iter().map(|_| Some(UseTally::default())).collect();
        for seen in &stream.tasks()[..=task.index] {
            let (mut right, mut total) = (vec![0; roles.len()], 0);
            for (number, batch) in stream.test_batches(seen.index, trainer.settings.batch_size).enumerate() {
                let batch = batch?;
                let skipped = stream.skipped().test;
                if skipped != self.skipped {
                    self.queries.clear();
                    self.skipped = skipped;
                }
                let mut queries = trainer.queries(&batch.pixels);
                let known = self.queries.entry((seen.index, number)).or_default();
                for (query, known) in queries.each().zip(known.iter()) {
                    if let Some(known) = known {
                        *query = Query::known(known.clone());
                    }
                }
                let labels = batch.labels.to_vec1::<u32>()?;
                let counts = right.iter_mut().zip(&mut uses).zip(&mut confusions);
                for ((right, uses), (role, confusion)) in counts {
                    let (logits, selections) =
                        trainer.predict_with(*role, &batch.pixels, queries.of(*role))?;
                    // What is said for the record ends no run.
                    let added =
                        uses.as_mut().map_or(Ok(()), |of| of.add(seen.index, batch.len(), &selections));
                    if let Err(error) = added {
                        tracing::warn!(
                            "which prompts the {}'s images take is not recorded: {error}",
                            role.as_str()
                        );
                        *uses = None;
                    }
                    let best = best_among(&logits, 0..task.seen())?;
                    *right += count_equal(&best, &labels);
                    confusion.add(&labels, &best);
                }
                *known = queries.each().map(|query| query.computed().cloned()).collect();
                total += batch.len();
                on_batch()?;
            }
            rows.iter_mut().zip(right).for_each(|(row, right)| row.push(100.0 * right as f64 / total as f64));
        }
        for (row, role) in rows.into_iter().zip(roles) {
            results.of_mut(*role).push(row);
        }
        let mut prompt_use = ByRole::default();
        for (uses, role) in uses.into_iter().zip(roles) {
            if let Some(uses) = uses {
                prompt_use.set(*role, uses.finish());
            }
        }
        Ok(Tested { confusions, prompt_use })
    }
}

/// How many rows of `logits` `(B, C)` have their largest entry among `classes` at the label.
pub(crate) fn count_right(
    logits: &Tensor,
    labels: &Tensor,
    classes: std::ops::Range<usize>,
) -> Result<usize> {
    Ok(count_equal(&best_among(logits, classes)?, &labels.to_vec1::<u32>()?))
}

/// The class among `classes` with the largest entry of each row of `logits` `(B, C)`.
fn best_among(logits: &Tensor, classes: std::ops::Range<usize>) -> Result<Vec<u32>> {
    let best = logits.narrow(1, classes.start, classes.len())?.argmax(D::Minus1)?.to_vec1::<u32>()?;
    Ok(best.into_iter().map(|best| best + classes.start as u32).collect())
}

fn count_equal(predicted: &[u32], labels: &[u32]) -> usize {
    predicted.iter().zip(labels).filter(|(predicted, label)| predicted == label).count()
}
