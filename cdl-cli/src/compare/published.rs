//! Published results, with names and settings of their methods. The README beside the data describes the files.

use std::collections::BTreeMap;

use cdl_core::traits::Role;
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::failure::Failure;

/// Marks a missing teacher and settings without a value.
pub const NONE: &str = "-";
/// Marks rows of a single network: no teacher, no distillation.
const ALONE: &str = "#";

/// Row of a CSV file: values by column name.
pub type Row = BTreeMap<String, String>;

/// Number in a column of a row; NaN if the text is not a number.
pub fn number(row: &Row, column: &str) -> f64 {
    row[column].parse().unwrap_or(f64::NAN)
}

/// Names of the parts of a subject.
pub const PARTS: [&str; 6] = ["dataset", "teacher", "student", "learner", "distiller", "tasks"];

/// Subject of a result: its [`PARTS`], by their names in this program. Networks are identified by width and number of
/// blocks, such as `384x12`.
#[derive(Debug, Clone, PartialEq)]
pub struct Subject(pub [String; 6]);

impl Serialize for Subject {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(PARTS.iter().zip(&self.0))
    }
}

/// Published table, names and settings.
pub struct Published {
    rows: Vec<Row>,
    names: Vec<Row>,
    settings: Vec<Row>,
}

impl Published {
    /// Reads the files that are compiled into the program.
    pub fn read() -> Result<Self, Failure> {
        let read = |file: &str, text: &str| -> Result<Vec<Row>, Failure> {
            let lines =
                csv::Reader::from_reader(text.as_bytes()).into_deserialize().collect::<Result<_, _>>();
            lines.map_err(|e| Failure::working(format!("built-in file {file}: {e}")))
        };
        Ok(Self {
            rows: read("table.csv", include_str!("../../assets/published/table.csv"))?,
            names: read("names.csv", include_str!("../../assets/published/names.csv"))?,
            settings: read("settings.csv", include_str!("../../assets/published/settings.csv"))?,
        })
    }

    /// Entry in `names.csv` of a published name in a column of the table.
    fn name(&self, column: &str, published: &str) -> Option<&Row> {
        self.names.iter().find(|name| name["column"] == column && name["published"] == published)
    }

    /// Name in this program of a published name; `None` if the method is not implemented.
    fn ours(&self, column: &str, published: &str) -> Option<String> {
        self.name(column, published).map(|name| name["ours"].clone()).filter(|ours| !ours.is_empty())
    }

    /// Name of the distiller of a network that learns without a teacher.
    pub fn alone(&self) -> String {
        self.ours("kd", ALONE).unwrap_or_default()
    }

    /// Published name of a network, or its own name if the table does not contain it.
    pub fn network<'a>(&'a self, ours: &'a str) -> &'a str {
        let name = self.names.iter().find(|name| name["column"] == "network" && name["ours"] == ours);
        name.map_or(ours, |name| name["published"].as_str())
    }

    /// Subject of a row; `None` if a method in it is not implemented.
    pub fn subject(&self, row: &Row) -> Option<Subject> {
        let teacher = match row["teacher"].as_str() {
            ALONE => NONE.to_string(),
            teacher => self.ours("network", teacher)?,
        };
        let ours = |column: &str| self.ours(column, &row[column]);
        let (dataset, student) = (ours("dataset")?, self.ours("network", &row["student"])?);
        Some(Subject([dataset, teacher, student, ours("learner")?, ours("kd")?, row["tasks"].clone()]))
    }

    /// Rows of `subject`, the newest version first.
    pub fn rows(&self, subject: &Subject) -> Vec<&Row> {
        self.rows.iter().filter(|row| self.subject(row).as_ref() == Some(subject)).collect()
    }

    /// Up to `limit` subjects of the table that share the most parts with `subject`.
    pub fn nearest(&self, subject: &Subject, limit: usize) -> Vec<Subject> {
        let common = |other: &Subject| other.0.iter().zip(&subject.0).filter(|(a, b)| a == b).count();
        let subjects: Vec<Subject> = self.rows.iter().filter_map(|row| self.subject(row)).collect();
        let best = subjects.iter().map(common).max();
        let mut nearest: Vec<Subject> = Vec::new();
        for other in subjects {
            if Some(common(&other)) == best && !nearest.contains(&other) && nearest.len() < limit {
                nearest.push(other);
            }
        }
        nearest
    }

    /// Note about the name of the method in a row.
    pub fn note(&self, row: &Row) -> Option<&str> {
        self.name("kd", &row["kd"]).map(|name| name["note"].as_str()).filter(|note| !note.is_empty())
    }

    /// Settings of a row that apply to the network `role` of a run. `None` is an unknown value, [`Value::Null`] a
    /// setting that was not used.
    pub fn settings<'a>(
        &'a self,
        row: &'a Row,
        role: Role,
    ) -> impl Iterator<Item = (&'a Row, Option<Value>)> {
        let concerns = move |setting: &&Row| {
            let (column, published) = (setting["column"].as_str(), &setting["published"]);
            let of_row =
                column == "*" || row[column] == *published || (published == "*" && row[column] != ALONE);
            of_row && ["*", role.as_str()].contains(&setting["of"].as_str())
        };
        self.settings.iter().filter(concerns).map(|setting| {
            let value = match setting["value"].as_str() {
                "?" => None,
                NONE => Some(Value::Null),
                value => Some(serde_json::from_str(value).unwrap_or_else(|_| value.into())),
            };
            (setting, value)
        })
    }
}

/// Formats a value for readers.
pub fn shown(value: &Value) -> String {
    match value {
        Value::Null => "not set".into(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published() -> Published {
        Published::read().map_err(|e| e.message).expect("the program's own tables")
    }

    #[test]
    fn every_name_is_known_and_every_setting_applies_to_a_row() {
        let published = published();
        assert_eq!(published.rows.len(), 310);
        for row in &published.rows {
            for column in ["dataset", "learner", "kd"] {
                assert!(published.name(column, &row[column]).is_some(), "{column} {row:?}");
            }
            for network in [&row["teacher"], &row["student"]].into_iter().filter(|name| *name != ALONE) {
                assert!(published.ours("network", network).is_some(), "{network}");
            }
            for number in ["acc", "forget", "tasks"] {
                assert!(super::number(row, number).is_finite(), "{number} {row:?}");
            }
            assert!(!row["version"].is_empty());
            // Rows without a subject have a note that explains why.
            if published.subject(row).is_none() {
                assert!(published.note(row).is_some_and(|note| note.contains("not implemented")), "{row:?}");
            }
        }
        for setting in &published.settings {
            let of = |row, role| published.settings(row, role).any(|(other, _)| std::ptr::eq(other, setting));
            let used = published.rows.iter().any(|row| of(row, Role::Student) || of(row, Role::Teacher));
            assert!(used && !setting["key"].is_empty() && !setting["what"].is_empty(), "{setting:?}");
            let value = setting["value"].as_str();
            let whole = ["?", NONE].contains(&value) || serde_json::from_str::<Value>(value).is_ok();
            assert!(whole, "{setting:?}");
        }
    }

    #[test]
    fn rows_are_found_by_their_subject() {
        let published = published();
        let row = |at: usize| &published.rows[at];
        let subject = published.subject(row(1)).expect("implemented");
        let [dataset, teacher, student, _, _, tasks] = &subject.0;
        assert_eq!([dataset, teacher, student, tasks], ["cifar100", "768x12", "384x12", "10"]);
        let rows = published.rows(&subject);
        let versions: Vec<_> = rows.iter().map(|row| (row["version"].as_str(), number(row, "acc"))).collect();
        assert_eq!(versions, [("D-CDL(site 2026)", 83.03), ("v3 KDP 2025-03", 83.03), ("v2 2024-12", 82.39)]);
        let alone = published.subject(row(0)).expect("implemented");
        assert_eq!((&alone.0[1], &alone.0[4]), (&NONE.to_string(), &published.alone()));
        // The first version has another name for the same method.
        assert_eq!(published.rows(&alone).len(), 4);
        let mut other = subject.clone();
        other.0[0] = "another".into();
        assert!(published.rows(&other).is_empty());
        assert!(published.nearest(&other, 3).contains(&subject));
    }
}
