//! Testing: the accuracy of both networks on every task seen so far.

use std::collections::HashMap;

use candle_core::{D, Tensor};

use crate::{
    error::Result,
    metrics::{AccuracyMatrix, Confusion, PoolUse, PromptUseSums},
    train::Trainer,
    traits::{ByRole, Query, Role, Task, TaskStream},
};

/// Accuracy matrices of both networks; that of a network that is not trained stays empty.
pub type Accuracies = ByRole<AccuracyMatrix>;

/// Results of a test besides accuracies.
#[derive(Debug, Default)]
pub struct Evaluation {
    /// Confusion matrix of each network that was tested.
    pub confusions: Vec<(Role, Confusion)>,
    /// Prompts that the images took, by pool; none where a network's methods do not choose.
    pub prompt_use: ByRole<Option<Vec<PoolUse>>>,
}

/// Tests networks task after task. Test images and frozen networks never change, so their queries are computed the
/// first time and kept, a row of numbers for each image.
#[derive(Debug, Default)]
pub struct Evaluator {
    /// Queries by task and batch, in the order of [`Queries::each`](super::queries::Queries::each); `None` where no learner asked.
    queries: HashMap<(usize, usize), Vec<Option<Tensor>>>,
    /// Test images left out when they were computed: one more, and all that follow stand elsewhere.
    skipped: usize,
}

/// Counts of one network during a test.
struct Counts {
    role: Role,
    /// Images of the task at hand that were classified correctly.
    right: usize,
    /// Accuracy on each task so far.
    row: Vec<f64>,
    confusion: Confusion,
    /// `None` once a selection could not be counted.
    uses: Option<PromptUseSums>,
}

impl Evaluator {
    /// Adds a row to the accuracy matrices: every task up to `task`, over all classes seen, without task identity.
    /// A evaluator belongs to one trainer and one stream. `on_batch` is called after every batch.
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
    ) -> Result<Evaluation> {
        let names = stream.classes().get(..task.seen()).unwrap_or(stream.classes());
        let new = |&role: &Role| Counts {
            role,
            right: 0,
            row: Vec::new(),
            confusion: Confusion::new(names),
            uses: Some(PromptUseSums::default()),
        };
        let mut networks: Vec<Counts> = trainer.settings.roles.iter().map(new).collect();
        for seen in &stream.tasks()[..=task.index] {
            let mut total = 0;
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
                for Counts { role, right, confusion, uses, .. } in &mut networks {
                    let (network, distiller) = (trainer.network(*role), trainer.distiller_of(*role));
                    let (logits, selections) =
                        network.predict(distiller, &batch.pixels, queries.of(*role))?;
                    // Recording is best effort: a failure here must not stop the run.
                    let added = uses.as_mut().map(|uses| uses.add(seen.index, batch.len(), &selections));
                    if let Some(Err(error)) = added {
                        let role = role.as_str();
                        tracing::warn!("which prompts the {role}'s images take is not recorded: {error}");
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
            for Counts { right, row, .. } in &mut networks {
                row.push(100.0 * std::mem::take(right) as f64 / total as f64);
            }
        }
        let mut tested = Evaluation::default();
        for Counts { role, row, confusion, uses, .. } in networks {
            results.of_mut(role).push(row);
            tested.confusions.push((role, confusion));
            *tested.prompt_use.of_mut(role) = uses.map(PromptUseSums::finish);
        }
        Ok(tested)
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
