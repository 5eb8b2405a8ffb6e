//! What accuracies mean: every definition in use, by name.

use serde::{Deserialize, Serialize};

/// `A[i][j]`: accuracy in percent on task `j`'s test set after learning task `i >= j`, over all classes seen.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AccuracyMatrix(Vec<Vec<f64>>);

/// Summary of a matrix, all in percent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The matrix itself, row `i` with `i + 1` entries.
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
}

impl AccuracyMatrix {
    /// Adds the row after another task: accuracy on each task so far.
    pub fn push(&mut self, row: Vec<f64>) {
        self.0.push(row);
    }

    /// Rows, each one longer than the one before.
    pub fn rows(&self) -> &[Vec<f64>] {
        &self.0
    }

    /// All definitions at once; `None` before the first task.
    pub fn summary(&self) -> Option<Summary> {
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
        Some(Summary {
            accuracy_matrix: self.clone(),
            average_accuracy: mean(last),
            forgetting: first.iter().zip(last).map(|(first, last)| first - last).sum::<f64>() / tasks as f64,
            average_incremental_accuracy: mean(&self.0.iter().map(|row| mean(row)).collect::<Vec<_>>()),
            forgetting_from_best: mean(&past(&best, last)),
            backward_transfer: mean(&past(last, &first)),
        })
    }

    /// The matrix as CSV with a header; what is not defined yet is left empty.
    pub fn to_csv(&self) -> String {
        let tasks = self.0.len();
        let mut csv = String::from("after_task");
        for j in 1..=tasks {
            csv += &format!(",task_{j}");
        }
        csv.push('\n');
        for (i, row) in self.0.iter().enumerate() {
            csv += &(i + 1).to_string();
            for j in 0..tasks {
                csv.push(',');
                csv += &row.get(j).map(f64::to_string).unwrap_or_default();
            }
            csv.push('\n');
        }
        csv
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_definition_on_an_example_worked_by_hand() {
        let mut matrix = AccuracyMatrix::default();
        assert!(matrix.summary().is_none());
        for row in [vec![90.0], vec![92.0, 80.0], vec![60.0, 70.0, 50.0]] {
            matrix.push(row);
        }
        let summary = matrix.summary();
        let Some(s) = summary else { panic!("a matrix with rows has a summary") };
        assert_eq!(s.average_accuracy, 60.0);
        assert_eq!(s.forgetting, (30.0 + 10.0 + 0.0) / 3.0);
        assert_eq!(s.average_incremental_accuracy, (90.0 + 86.0 + 60.0) / 3.0);
        assert_eq!(s.forgetting_from_best, (32.0 + 10.0) / 2.0);
        assert_eq!(s.backward_transfer, (-30.0 - 10.0) / 2.0);
        assert_eq!(matrix.to_csv(), "after_task,task_1,task_2,task_3\n1,90,,\n2,92,80,\n3,60,70,50\n");
    }

    #[test]
    fn a_single_task_forgets_nothing() {
        let mut matrix = AccuracyMatrix::default();
        matrix.push(vec![75.0]);
        let forgotten = matrix.summary().map(|s| (s.forgetting, s.forgetting_from_best, s.backward_transfer));
        assert_eq!(forgotten, Some((0.0, 0.0, 0.0)));
    }
}
