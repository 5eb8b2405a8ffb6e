//! The published table, what its names are here, and what it was made with; see the README beside the data.

use cdl_core::Role;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::failure::Failure;

const TABLE: &str = include_str!("../../assets/published/table.csv");
const NAMES: &str = include_str!("../../assets/published/names.csv");
const SETTINGS: &str = include_str!("../../assets/published/settings.csv");
/// Stands for the teacher of a single network, and for what has no value.
pub const NOTHING: &str = "-";
/// The table's word for no teacher and no distillation.
const ALONE: &str = "#";

/// A line of the table.
#[derive(Debug, Clone, Deserialize)]
pub struct Row {
    /// Of the paper.
    pub version: String,
    dataset: String,
    teacher: String,
    student: String,
    learner: String,
    /// The distillation method.
    pub kd: String,
    tasks: usize,
    /// Average accuracy in percent.
    #[serde(rename = "acc")]
    pub accuracy: f64,
    /// Forgetting in percent.
    #[serde(rename = "forget")]
    pub forgetting: f64,
}

#[derive(Debug, Deserialize)]
struct Name {
    column: String,
    published: String,
    ours: String,
    note: String,
}

/// A setting of the published code.
#[derive(Debug, Deserialize)]
pub struct Setting {
    column: String,
    published: String,
    of: String,
    /// Where a run has it.
    pub key: String,
    value: String,
    /// For people.
    pub what: String,
}

/// What a result is about, in our names: data set, teacher (`-` for none), student, learner, distiller, number of tasks.
pub type Subject = [String; 6];
/// What the parts of a subject are called.
pub const PARTS: [&str; 6] = ["data set", "teacher", "student", "learner", "distiller", "tasks"];

/// Table, names and settings.
pub struct Published {
    rows: Vec<Row>,
    names: Vec<Name>,
    settings: Vec<Setting>,
}

fn read<T: DeserializeOwned>(file: &str, text: &str) -> Result<Vec<T>, Failure> {
    let rows = csv::Reader::from_reader(text.as_bytes()).into_deserialize().collect::<Result<_, _>>();
    rows.map_err(|e| Failure::working(format!("{file} of this program: {e}")))
}

impl Published {
    /// As this program carries them.
    pub fn read() -> Result<Self, Failure> {
        Ok(Self {
            rows: read("table.csv", TABLE)?,
            names: read("names.csv", NAMES)?,
            settings: read("settings.csv", SETTINGS)?,
        })
    }

    fn name(&self, column: &str, published: &str) -> Option<&Name> {
        self.names.iter().find(|name| name.column == column && name.published == published)
    }

    fn ours(&self, column: &str, published: &str) -> Option<String> {
        let name = self.name(column, published).filter(|name| !name.ours.is_empty());
        name.map(|name| name.ours.clone())
    }

    /// The distiller of a network that learns alone.
    pub fn alone(&self) -> String {
        self.ours("kd", ALONE).unwrap_or_default()
    }

    /// What a network is called in the table, where it has a name.
    pub fn network(&self, ours: &str) -> String {
        let name = self.names.iter().find(|name| name.column == "network" && name.ours == ours);
        name.map_or(ours, |name| &name.published).to_string()
    }

    /// What a row is about; `None` where something in it is not implemented.
    pub fn subject(&self, row: &Row) -> Option<Subject> {
        let teacher = match row.teacher.as_str() {
            ALONE => NOTHING.to_string(),
            teacher => self.ours("network", teacher)?,
        };
        Some([
            self.ours("dataset", &row.dataset)?,
            teacher,
            self.ours("network", &row.student)?,
            self.ours("learner", &row.learner)?,
            self.ours("kd", &row.kd)?,
            row.tasks.to_string(),
        ])
    }

    /// The rows about `subject`, the newest version first.
    pub fn rows(&self, subject: &Subject) -> Vec<&Row> {
        self.rows.iter().filter(|row| self.subject(row).as_ref() == Some(subject)).collect()
    }

    /// The subjects of the table that have most in common with `subject`, at most `most` of them.
    pub fn nearest(&self, subject: &Subject, most: usize) -> Vec<Subject> {
        let common = |other: &Subject| other.iter().zip(subject).filter(|(a, b)| a == b).count();
        let mut subjects: Vec<Subject> = Vec::new();
        for other in self.rows.iter().filter_map(|row| self.subject(row)) {
            if !subjects.contains(&other) {
                subjects.push(other);
            }
        }
        let best = subjects.iter().map(common).max().unwrap_or(0);
        subjects.retain(|other| common(other) == best);
        subjects.truncate(most);
        subjects
    }

    /// What is to be said about a row's name for the method.
    pub fn note(&self, row: &Row) -> Option<&str> {
        self.name("kd", &row.kd).map(|name| name.note.as_str()).filter(|note| !note.is_empty())
    }

    /// The settings that a row was made with, as far as they concern the network `role` of a run; `None` for a value
    /// that is not known, [`Value::Null`] for a setting that was not made.
    pub fn settings<'a>(
        &'a self,
        row: &'a Row,
        role: Role,
    ) -> impl Iterator<Item = (&'a Setting, Option<Value>)> {
        let concerns = move |setting: &&Setting| {
            let whole = ["*", role.as_str()].contains(&setting.of.as_str());
            let value = match setting.column.as_str() {
                "dataset" => &row.dataset,
                "teacher" => &row.teacher,
                "student" => &row.student,
                "learner" => &row.learner,
                "kd" => &row.kd,
                _ => return whole,
            };
            whole && (setting.published == *value || (setting.published == "*" && value != ALONE))
        };
        self.settings.iter().filter(concerns).map(|setting| {
            let value = match setting.value.as_str() {
                "?" => None,
                NOTHING => Some(Value::Null),
                value => Some(serde_json::from_str(value).unwrap_or_else(|_| value.into())),
            };
            (setting, value)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published() -> Published {
        Published::read().map_err(|e| e.message).expect("the program's own tables")
    }

    #[test]
    fn every_name_of_the_table_is_known_and_every_setting_is_some_rows() {
        let published = published();
        assert_eq!(published.rows.len(), 310);
        for row in &published.rows {
            for (column, name) in [("dataset", &row.dataset), ("learner", &row.learner), ("kd", &row.kd)] {
                assert!(published.name(column, name).is_some(), "{column} {name}");
            }
            for network in [&row.teacher, &row.student].into_iter().filter(|name| *name != ALONE) {
                assert!(published.ours("network", network).is_some(), "{network}");
            }
            // What cannot be reached says why.
            if published.subject(row).is_none() {
                assert!(published.note(row).is_some_and(|note| note.contains("not implemented")), "{row:?}");
            }
        }
        for setting in &published.settings {
            let used = published.rows.iter().any(|row| {
                [Role::Student, Role::Teacher]
                    .into_iter()
                    .any(|role| published.settings(row, role).any(|(other, _)| std::ptr::eq(other, setting)))
            });
            assert!(used, "{setting:?}");
            let value = setting.value.as_str();
            let whole = ["?", NOTHING].contains(&value) || serde_json::from_str::<Value>(value).is_ok();
            assert!(whole, "{setting:?}");
        }
    }

    #[test]
    fn rows_are_found_by_what_they_are_about() {
        let published = published();
        let row = |at: usize| &published.rows[at];
        let subject = published.subject(row(1)).expect("implemented");
        assert_eq!(
            [&subject[0], &subject[1], &subject[2], &subject[5]],
            ["cifar100", "768x12", "384x12", "10"]
        );
        let versions: Vec<(&str, f64)> =
            published.rows(&subject).iter().map(|row| (row.version.as_str(), row.accuracy)).collect();
        assert_eq!(versions, [("D-CDL(site 2026)", 83.03), ("v3 KDP 2025-03", 83.03), ("v2 2024-12", 82.39)]);
        let alone = published.subject(row(0)).expect("implemented");
        assert_eq!(alone[1], NOTHING);
        assert_eq!(alone[4], published.alone());
        // The first version calls the same by another name.
        assert_eq!(published.rows(&alone).len(), 4);
        let mut other = subject.clone();
        other[0] = "another".into();
        assert!(published.rows(&other).is_empty());
        assert!(published.nearest(&other, 3).contains(&subject));
    }
}
