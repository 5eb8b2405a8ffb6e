//! Accuracy matrix, and definitions of the metrics derived from it.

use serde::{Deserialize, Serialize};

/// Accuracy matrix. `A[i][j]` is the accuracy in percent on task `j`'s test set after learning task `i >= j`, over all
/// classes seen.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Vec<f64>>")]
pub struct AccuracyMatrix(Vec<Vec<f64>>);

impl TryFrom<Vec<Vec<f64>>> for AccuracyMatrix {
    type Error = String;

    fn try_from(rows: Vec<Vec<f64>>) -> Result<Self, String> {
        match rows.iter().zip(1..).find(|(row, number)| row.len() != *number) {
            None => Ok(Self(rows)),
            Some((row, number)) => {
                let entries = row.len();
                Err(format!("row {number} of an accuracy matrix has length {entries}, expected {number}"))
            }
        }
    }
}

/// Summary of an accuracy matrix, in percent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Accuracy matrix. Row `i` has `i + 1` entries.
    pub accuracy_matrix: AccuracyMatrix,
    /// Published definition: `mean_j A[T-1][j]`.
    pub average_accuracy: f64,
    /// Published definition: `Σ_j (A[j][j] - A[T-1][j]) / T`.
    pub forgetting: f64,
    /// `mean_i mean_{j<=i} A[i][j]`.
    pub average_incremental_accuracy: f64,
    /// `mean_{j<T-1} (max_i A[i][j] - A[T-1][j])`; 0 for a single task.
    pub forgetting_from_best: f64,
    /// `mean_{j<T-1} (A[T-1][j] - A[j][j])`; 0 for a single task.
    pub backward_transfer: f64,
    /// Always `null`. Forward transfer compares the accuracy on a task before the task is learned with the accuracy of
    /// an untrained network. Predictions are limited to the classes seen so far, so the former is 0 by construction.
    #[serde(default)]
    pub forward_transfer: Option<f64>,
    /// Accuracy over the test images of all tasks after the last task: `Σ_j n_j A[T-1][j] / Σ_j n_j`, with `n_j` test
    /// images of task `j`. `None` if the numbers of test images are not recorded.
    #[serde(default)]
    pub accuracy_over_images: Option<f64>,
    /// Mean over the tasks of the accuracy over images: `mean_i Σ_{j<=i} n_j A[i][j] / Σ_{j<=i} n_j`.
    #[serde(default)]
    pub incremental_accuracy_over_images: Option<f64>,
}

/// Definition of a metric. `T` is the number of tasks, `A[i][j]` is defined in [`AccuracyMatrix`], `n[j]` is the number of
/// test images of task `j`, indices start at 0.
#[derive(Debug, Clone, Copy)]
pub struct Definition {
    /// Name of the field in [`Summary`].
    pub name: &'static str,
    /// Title for tables and reports.
    pub title: &'static str,
    /// Formula in plain text.
    pub formula: &'static str,
    /// Formula for the mathematics mode of LaTeX.
    pub latex: &'static str,
    /// Returns the value, if the metric is defined.
    pub value: fn(&Summary) -> Option<f64>,
}

/// All definitions, in the order of [`Summary`].
pub const DEFINITIONS: [Definition; 8] = [
    Definition {
        name: "average_accuracy",
        title: "Average accuracy (published)",
        formula: "mean over j of A[T-1][j]",
        latex: r"\frac{1}{T}\sum_{j} A_{T-1,j}",
        value: |summary| Some(summary.average_accuracy),
    },
    Definition {
        name: "forgetting",
        title: "Forgetting (published)",
        formula: "sum over j of (A[j][j] - A[T-1][j]) / T",
        latex: r"\frac{1}{T}\sum_{j} (A_{j,j}-A_{T-1,j})",
        value: |summary| Some(summary.forgetting),
    },
    Definition {
        name: "average_incremental_accuracy",
        title: "Average incremental accuracy",
        formula: "mean over i of the mean over j <= i of A[i][j]",
        latex: r"\frac{1}{T}\sum_{i}\frac{1}{i+1}\sum_{j\le i} A_{i,j}",
        value: |summary| Some(summary.average_incremental_accuracy),
    },
    Definition {
        name: "forgetting_from_best",
        title: "Forgetting from best",
        formula: "mean over j < T-1 of (max over i of A[i][j] - A[T-1][j])",
        latex: r"\frac{1}{T-1}\sum_{j<T-1} (\max_{i} A_{i,j}-A_{T-1,j})",
        value: |summary| Some(summary.forgetting_from_best),
    },
    Definition {
        name: "backward_transfer",
        title: "Backward transfer",
        formula: "mean over j < T-1 of (A[T-1][j] - A[j][j])",
        latex: r"\frac{1}{T-1}\sum_{j<T-1} (A_{T-1,j}-A_{j,j})",
        value: |summary| Some(summary.backward_transfer),
    },
    Definition {
        name: "forward_transfer",
        title: "Forward transfer",
        formula: "not defined: predictions are limited to the classes seen so far",
        latex: r"\text{not defined: predictions are limited to the classes seen so far}",
        value: |summary| summary.forward_transfer,
    },
    Definition {
        name: "accuracy_over_images",
        title: "Accuracy over images (top-1)",
        formula: "sum over j of n[j] A[T-1][j] / sum over j of n[j]",
        latex: r"\frac{\sum_{j} n_j A_{T-1,j}}{\sum_{j} n_j}",
        value: |summary| summary.accuracy_over_images,
    },
    Definition {
        name: "incremental_accuracy_over_images",
        title: "Incremental accuracy over images (mean top-1)",
        formula: "mean over i of (sum over j <= i of n[j] A[i][j] / sum over j <= i of n[j])",
        latex: r"\frac{1}{T}\sum_{i}\frac{\sum_{j\le i} n_j A_{i,j}}{\sum_{j\le i} n_j}",
        value: |summary| summary.incremental_accuracy_over_images,
    },
];

/// Returns the percentage of all test images that are classified correctly, for a row of an accuracy matrix and the
/// numbers of test images of the tasks. `None` if the numbers are missing.
pub fn accuracy_over_images(row: &[f64], test_images: &[usize]) -> Option<f64> {
    let test_images = test_images.get(..row.len())?;
    let images: usize = test_images.iter().sum();
    // Rounding gives the exact number of correctly classified images.
    let right: f64 =
        row.iter().zip(test_images).map(|(accuracy, &count)| (accuracy * count as f64 / 100.0).round()).sum();
    (images > 0).then(|| 100.0 * right / images as f64)
}

impl AccuracyMatrix {
    /// Appends the row of another task: the accuracy on each task so far.
    pub fn push(&mut self, row: Vec<f64>) {
        self.0.push(row);
    }

    /// Returns the rows. Row `i` has `i + 1` entries.
    pub fn rows(&self) -> &[Vec<f64>] {
        &self.0
    }

    /// Returns the matrix as it was after the first `tasks` tasks.
    pub fn first(&self, tasks: usize) -> Self {
        Self(self.0.iter().take(tasks).cloned().collect())
    }

    /// Returns the values of all definitions, or `None` before the first task. `test_images` are the numbers of test
    /// images of the tasks; without them, metrics over images have no value.
    pub fn summary(&self, test_images: &[usize]) -> Option<Summary> {
        let last = self.0.last()?;
        let tasks = self.0.len();
        let mean = |values: &[f64]| match values.len() {
            0 => 0.0,
            n => values.iter().sum::<f64>() / n as f64,
        };
        let first: Vec<f64> = (0..tasks).map(|j| self.0[j][j]).collect();
        let best: Vec<f64> =
            (0..tasks).map(|j| self.0[j..].iter().map(|row| row[j]).fold(f64::MIN, f64::max)).collect();
        let before_last = tasks - 1;
        let past = |from: &[f64], to: &[f64]| -> Vec<f64> {
            from.iter().zip(to).take(before_last).map(|(from, to)| from - to).collect()
        };
        let over_images: Option<Vec<f64>> =
            self.0.iter().map(|row| accuracy_over_images(row, test_images)).collect();
        Some(Summary {
            accuracy_matrix: self.clone(),
            average_accuracy: mean(last),
            forgetting: first.iter().zip(last).map(|(first, last)| first - last).sum::<f64>() / tasks as f64,
            average_incremental_accuracy: mean(&self.0.iter().map(|row| mean(row)).collect::<Vec<_>>()),
            forgetting_from_best: mean(&past(&best, last)),
            backward_transfer: mean(&past(last, &first)),
            forward_transfer: None,
            accuracy_over_images: accuracy_over_images(last, test_images),
            incremental_accuracy_over_images: over_images.map(|values| mean(&values)),
        })
    }

    /// Returns the matrix as CSV with a header. Entries above the diagonal are empty.
    pub(crate) fn to_csv(&self) -> String {
        let tasks = self.0.len();
        let mut csv = String::from("after_task");
        csv.extend((1..=tasks).map(|task| format!(",task_{task}")));
        csv.push('\n');
        for (row, number) in self.0.iter().zip(1..) {
            csv += &format!("{number}");
            csv.extend(row.iter().map(|accuracy| format!(",{accuracy}")));
            csv += &",".repeat(tasks - row.len());
            csv.push('\n');
        }
        csv
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_definition_matches_an_example_computed_by_hand() {
        let mut matrix = AccuracyMatrix::default();
        assert!(matrix.summary(&[]).is_none());
        for row in [vec![90.0], vec![92.0, 80.0], vec![60.0, 70.0, 50.0]] {
            matrix.push(row);
        }
        let summary = matrix.summary(&[10, 20, 70]);
        let Some(s) = summary else { panic!("a matrix with rows has a summary") };
        assert_eq!(s.average_accuracy, 60.0);
        assert_eq!(s.forgetting, (30.0 + 10.0 + 0.0) / 3.0);
        assert_eq!(s.average_incremental_accuracy, (90.0 + 86.0 + 60.0) / 3.0);
        assert_eq!(s.accuracy_over_images, Some(6.0 + 14.0 + 35.0));
        // After two tasks 9 (9.2 rounded) and 16 of 30 images are right.
        assert_eq!(s.incremental_accuracy_over_images, Some((90.0 + 2500.0 / 30.0 + 55.0) / 3.0));
        assert_eq!(matrix.summary(&[10, 20]).and_then(|s| s.accuracy_over_images), None);
        assert_eq!(s.forgetting_from_best, (32.0 + 10.0) / 2.0);
        assert_eq!(s.backward_transfer, (-30.0 - 10.0) / 2.0);
        assert_eq!(matrix.to_csv(), "after_task,task_1,task_2,task_3\n1,90,,\n2,92,80,\n3,60,70,50\n");
    }

    #[test]
    fn definitions_match_names_and_values_of_the_summary() {
        let mut matrix = AccuracyMatrix::default();
        matrix.push(vec![90.0]);
        matrix.push(vec![70.0, 40.0]);
        let summary = matrix.summary(&[10, 5]).expect("a matrix with rows has a summary");
        let json = serde_json::to_value(&summary).expect("JSON");
        let fields: Vec<&String> = json.as_object().expect("object").keys().skip(1).collect();
        assert_eq!(fields, DEFINITIONS.map(|definition| definition.name));
        for definition in DEFINITIONS {
            assert_eq!(json[definition.name].as_f64(), (definition.value)(&summary), "{}", definition.name);
        }
    }

    /// Evaluates the formulas term by term.
    fn evaluate_formulas(a: &[Vec<f64>]) -> [f64; 5] {
        let t = a.len();
        let (mut average, mut forgetting, mut incremental, mut best, mut backward) =
            (0.0, 0.0, 0.0, 0.0, 0.0);
        for (i, row) in a.iter().enumerate() {
            let mut sum = 0.0;
            for accuracy in row {
                sum += accuracy;
            }
            incremental += sum / (i + 1) as f64 / t as f64;
        }
        for j in 0..t {
            average += a[t - 1][j] / t as f64;
            forgetting += (a[j][j] - a[t - 1][j]) / t as f64;
            if j + 1 < t {
                let mut most = a[j][j];
                for row in &a[j..] {
                    most = if row[j] > most { row[j] } else { most };
                }
                best += (most - a[t - 1][j]) / (t - 1) as f64;
                backward += (a[t - 1][j] - a[j][j]) / (t - 1) as f64;
            }
        }
        [average, forgetting, incremental, best, backward]
    }

    #[test]
    fn summaries_of_random_matrices_agree_with_the_formulas() {
        let mut rng = crate::rng::Rng::new(3);
        for round in 0..200 {
            let mut matrix = AccuracyMatrix::default();
            for i in 0..=round % 12 {
                matrix
                    .push((0..=i).map(|_| (50.0 + 25.0 * rng.standard_normal()).clamp(0.0, 100.0)).collect());
            }
            let s = matrix.summary(&[]).expect("a matrix with rows has a summary");
            let found = DEFINITIONS.map(|definition| (definition.value)(&s));
            for (found, expected) in found.into_iter().flatten().zip(evaluate_formulas(matrix.rows())) {
                assert!((found - expected).abs() < 1e-9, "{found} {expected} {matrix:?}");
            }
            assert_eq!(found.into_iter().flatten().count(), 5);
        }
    }

    #[test]
    fn rows_of_wrong_length_are_refused() {
        let read = |text: &str| serde_json::from_str::<AccuracyMatrix>(text).map_err(|e| e.to_string());
        assert!(read("[[50.0],[60.0,70.0]]").is_ok());
        let refused = read("[[50.0],[60.0]]");
        assert!(refused.is_err_and(|e| e.contains("row 2 of an accuracy matrix has length 1, expected 2")));
    }
}
