//! Evaluation: the accuracy of both networks on every task seen so far.

use std::collections::HashMap;

use candle_core::{D, Tensor};

use crate::{
    error::Result,
    metrics::{AccuracyMatrix, Confusion, PoolUsage, PromptUseSums},
    train::Trainer,
    traits::{ByRole, Query, Role, Task, TaskStream},
};

/// Accuracy matrices of both networks. The matrix of a network that is not trained is empty.
pub type Accuracies = ByRole<AccuracyMatrix>;

/// Results of an evaluation except accuracies.
#[derive(Debug, Default)]
pub struct Evaluation {
    /// Confusion matrix of each network that was tested.
    pub confusions: Vec<(Role, Confusion)>,
    /// Number of test images of each task, without skipped ones.
    pub test_images: Vec<usize>,
    /// Usage of the prompts of each pool. Empty if the methods of a network select no prompts.
    pub prompt_use: ByRole<Option<Vec<PoolUsage>>>,
}

/// Evaluates networks after each task. Test images and frozen networks do not change, so their queries are computed
/// once and cached.
#[derive(Debug, Default)]
pub struct Evaluator {
    /// Queries by task and batch, in the order of [`Queries::each`](super::queries::Queries::each). `None` for
    /// queries that no learner uses.
    queries: HashMap<(usize, usize), Vec<Option<Tensor>>>,
    /// Number of skipped test images when the queries were computed. If another image is skipped, later images move to
    /// other batches and the cache is invalid.
    skipped: usize,
}

/// Counts of one network during an evaluation.
struct Counts {
    role: Role,
    /// Number of correctly classified images of the current task.
    correct: usize,
    /// Accuracy on each task so far.
    row: Vec<f64>,
    confusion: Confusion,
    /// `None` after a selection could not be counted.
    prompt_use: Option<PromptUseSums>,
}

impl Evaluator {
    /// Adds a row to the accuracy matrices: the accuracy on every task up to `task`, over all classes seen, without
    /// task identity. An evaluator must be used with one trainer and one stream. Calls `on_batch` after every batch.
    ///
    /// # Errors
    /// Unreadable images, and errors of the methods and of `on_batch`.
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
            correct: 0,
            row: Vec::new(),
            confusion: Confusion::new(names),
            prompt_use: Some(PromptUseSums::default()),
        };
        let mut networks: Vec<Counts> = trainer.settings.roles.iter().map(new).collect();
        let mut evaluation = Evaluation::default();
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
                let cached = self.queries.entry((seen.index, number)).or_default();
                for (query, cached) in queries.each().zip(cached.iter()) {
                    if let Some(cached) = cached {
                        *query = Query::known(cached.clone());
                    }
                }
                let labels = batch.labels.to_vec1::<u32>()?;
                for Counts { role, correct, confusion, prompt_use, .. } in &mut networks {
                    let (network, distiller) = (trainer.network(*role), trainer.distiller_of(*role));
                    let (logits, selections) =
                        network.predict(distiller, &batch.pixels, queries.of(*role))?;
                    // Recording is best effort: a failure here must not stop the run.
                    let added =
                        prompt_use.as_mut().map(|sums| sums.add(seen.index, batch.len(), &selections));
                    if let Some(Err(error)) = added {
                        let role = role.as_str();
                        tracing::warn!("cannot record the usage of prompts by the {role}: {error}");
                        *prompt_use = None;
                    }
                    let best = best_among(&logits, 0..task.seen())?;
                    *correct += count_equal(&best, &labels);
                    confusion.add(&labels, &best);
                }
                *cached = queries.each().map(|query| query.computed().cloned()).collect();
                total += batch.len();
                on_batch()?;
            }
            for Counts { correct, row, .. } in &mut networks {
                row.push(100.0 * std::mem::take(correct) as f64 / total as f64);
            }
            evaluation.test_images.push(total);
        }
        for Counts { role, row, confusion, prompt_use, .. } in networks {
            results.of_mut(role).push(row);
            evaluation.confusions.push((role, confusion));
            *evaluation.prompt_use.of_mut(role) = prompt_use.map(PromptUseSums::finish);
        }
        Ok(evaluation)
    }
}

/// Returns the number of rows of `logits` `(B, C)` whose largest entry among `classes` is at the label, for `labels`
/// `(B,)` (u32).
pub(crate) fn count_correct(
    logits: &Tensor,
    labels: &Tensor,
    classes: std::ops::Range<usize>,
) -> Result<usize> {
    Ok(count_equal(&best_among(logits, classes)?, &labels.to_vec1::<u32>()?))
}

/// Returns the class among `classes` with the largest entry, for each row of `logits` `(B, C)`.
fn best_among(logits: &Tensor, classes: std::ops::Range<usize>) -> Result<Vec<u32>> {
    let best = logits.narrow(1, classes.start, classes.len())?.argmax(D::Minus1)?.to_vec1::<u32>()?;
    Ok(best.into_iter().map(|best| best + classes.start as u32).collect())
}

fn count_equal(predicted: &[u32], labels: &[u32]) -> usize {
    predicted.iter().zip(labels).filter(|(predicted, label)| predicted == label).count()
}
