//! Confusion matrices: test images by true and predicted class.

use crate::{
    error::{Error, Result},
    metrics::csv_cells::{escape_cell, unescape_cell},
};

/// Number of test images by true and predicted class, among the classes seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Confusion {
    classes: Vec<String>,
    /// `counts[t][p]`: images of class `t` that were predicted as class `p`.
    counts: Vec<Vec<u64>>,
}

impl Confusion {
    /// Creates an empty matrix for `classes`.
    pub(crate) fn new(classes: &[String]) -> Self {
        Self { classes: classes.to_vec(), counts: vec![vec![0; classes.len()]; classes.len()] }
    }

    /// Adds images by true and predicted class. Classes outside the matrix are ignored.
    pub(crate) fn add(&mut self, labels: &[u32], predicted: &[u32]) {
        for (&label, &predicted) in labels.iter().zip(predicted) {
            let count = self.counts.get_mut(label as usize).and_then(|row| row.get_mut(predicted as usize));
            if let Some(count) = count {
                *count += 1;
            }
        }
    }

    /// Returns the class names in stream order.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Returns the numbers of images: a row for each true class, a column for each predicted class.
    pub fn counts(&self) -> &[Vec<u64>] {
        &self.counts
    }

    /// Returns the accuracy on each class in percent, or `None` for a class without test images.
    pub fn class_accuracy(&self) -> Vec<Option<f64>> {
        let share = |(class, row): (usize, &Vec<u64>)| match row.iter().sum::<u64>() {
            0 => None,
            images => Some(100.0 * row.get(class).copied().unwrap_or(0) as f64 / images as f64),
        };
        self.counts.iter().enumerate().map(share).collect()
    }

    /// Returns the matrix as CSV: a header of class names, a row for each true class, a column for each predicted
    /// class.
    pub(crate) fn to_csv(&self) -> Result<Vec<u8>> {
        let fail = |reason: String| Error::State { owner: "confusion matrix".into(), reason };
        let mut csv = csv::Writer::from_writer(Vec::new());
        let classes: Vec<_> = self.classes.iter().map(|class| escape_cell(class)).collect();
        let header = std::iter::once("true_class").chain(classes.iter().map(AsRef::as_ref));
        csv.write_record(header).map_err(|e| fail(e.to_string()))?;
        for row in classes.iter().zip(&self.counts) {
            csv.serialize(row).map_err(|e| fail(e.to_string()))?;
        }
        csv.into_inner().map_err(|e| fail(e.to_string()))
    }

    /// Reads the CSV of [`Confusion::to_csv`]. An error is a message in one sentence.
    pub(crate) fn from_csv(bytes: &[u8]) -> Result<Self, String> {
        let mut csv = csv::Reader::from_reader(bytes);
        let header = csv.headers().map_err(|e| e.to_string())?;
        let classes: Vec<String> = header.iter().skip(1).map(|cell| unescape_cell(cell).into()).collect();
        let mut counts = Vec::new();
        for record in csv.records() {
            let record = record.map_err(|e| e.to_string())?;
            let count = |cell: &str| {
                cell.parse().map_err(|_| format!("line {}: `{cell}` is not a whole number", counts.len() + 2))
            };
            counts.push(record.iter().skip(1).map(count).collect::<Result<Vec<u64>, String>>()?);
        }
        if counts.len() != classes.len() {
            return Err(format!(
                "the confusion matrix has {} class columns and {} rows; expected as many rows as columns",
                classes.len(),
                counts.len()
            ));
        }
        Ok(Self { classes, counts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_csv_match_an_example_computed_by_hand() {
        let names = ["cat", "dog, large", "a \"bird\""].map(String::from);
        let mut confusion = Confusion::new(&names);
        confusion.add(&[0, 0, 0, 0, 1, 1], &[0, 0, 0, 2, 0, 1]);
        // Classes outside the matrix.
        confusion.add(&[3, 0], &[0, 3]);
        assert_eq!(confusion.counts(), [vec![3, 0, 1], vec![1, 1, 0], vec![0, 0, 0]]);
        assert_eq!(confusion.class_accuracy(), [Some(75.0), Some(50.0), None]);
        let csv = confusion.to_csv().expect("CSV");
        let expected = "true_class,cat,\"dog, large\",\"a \"\"bird\"\"\"\ncat,3,0,1\n\"dog, large\",1,1,0\n\"a \
                        \"\"bird\"\"\",0,0,0\n";
        assert_eq!(String::from_utf8(csv.clone()).expect("UTF-8"), expected);
        assert_eq!(Confusion::from_csv(&csv), Ok(confusion));
    }

    #[test]
    fn malformed_csv_is_refused() {
        for (bytes, part) in [
            ("true_class,a,b\na,1,2\n", "2 class columns"),
            ("true_class,a\na,x\n", "`x`"),
            ("t,a\na,1,2\n", "fields"),
        ] {
            let refused = Confusion::from_csv(bytes.as_bytes()).expect_err("no matrix");
            assert!(refused.contains(part), "{refused}");
        }
    }

    #[test]
    fn counts_of_random_predictions_equal_a_direct_count() {
        let mut rng = crate::rng::Rng::new(7);
        let names: Vec<String> = (0..5).map(|class| class.to_string()).collect();
        let mut classes = || (0..300).map(|_| (rng.standard_normal().abs() * 2.0).min(4.0) as u32).collect();
        let (labels, predicted): (Vec<u32>, Vec<u32>) = (classes(), classes());
        let mut confusion = Confusion::new(&names);
        for start in (0..300).step_by(7) {
            let end = (start + 7).min(300);
            confusion.add(&labels[start..end], &predicted[start..end]);
        }
        for (truth, row) in confusion.counts().iter().enumerate() {
            for (prediction, count) in row.iter().enumerate() {
                let pair = (truth as u32, prediction as u32);
                let expected = labels.iter().zip(&predicted).filter(|&(&t, &p)| (t, p) == pair).count();
                assert_eq!(*count, expected as u64);
            }
        }
    }
}
