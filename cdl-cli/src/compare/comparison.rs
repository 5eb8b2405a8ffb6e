//! Results beside the published rows about the same subject.

use serde::Serialize;
use serde_json::Value;

use super::{
    own_results::Ours,
    published::{Published, Subject, number},
};

/// Number of nearest subjects that can be read at a glance.
const NEAREST: usize = 3;

/// One network beside the published rows about the same subject.
#[derive(Serialize)]
pub struct Comparison {
    /// Our results.
    #[serde(flatten)]
    pub ours: Ours,
    /// Rows about the same subject, the newest version first.
    pub published: Vec<Beside>,
    /// Settings that differ from those of any row.
    pub settings_that_differ: Vec<Difference>,
    /// Notes about the rows.
    pub notes: Vec<String>,
    /// Nearest subjects of the table, where no row is about the same.
    pub nearest: Vec<Subject>,
}

/// Row of the table, and our figures less its figures.
#[derive(Serialize)]
pub struct Beside {
    pub version: String,
    pub method: String,
    pub average_accuracy: f64,
    pub forgetting: f64,
    pub average_accuracy_difference: f64,
    pub forgetting_difference: f64,
}

/// Setting that differs, or cannot be known to be the same.
#[derive(Serialize)]
pub struct Difference {
    pub what: String,
    pub key: String,
    /// Null where it is not set.
    pub ours: Value,
    /// Null where it is not set or not known.
    pub published: Value,
    pub published_is_known: bool,
}

/// Puts results beside the rows of the table.
pub fn beside(ours: Ours, table: &Published) -> Comparison {
    let rows = table.rows(&ours.subject);
    let nearest = if rows.is_empty() { table.nearest(&ours.subject, NEAREST) } else { Vec::new() };
    let (mut published, mut notes) = (Vec::new(), Vec::new());
    let mut settings_that_differ: Vec<Difference> = Vec::new();
    for row in rows {
        for (setting, value) in table.settings(row, ours.role) {
            let (what, key) = (setting["what"].clone(), setting["key"].clone());
            let own = ours.value(&key);
            let published_is_known = value.is_some();
            let published = value.unwrap_or_default();
            // Rows of several versions were made with the same settings.
            let told = settings_that_differ.iter().any(|other| {
                (&other.what, &other.published, other.published_is_known)
                    == (&what, &published, published_is_known)
            });
            if !(told || published_is_known && same(&published, &own)) {
                settings_that_differ.push(Difference { what, key, ours: own, published, published_is_known });
            }
        }
        let (version, method) = (row["version"].clone(), row["kd"].clone());
        notes.extend(table.note(row).map(|note| format!("{version}, {method}: {note}")));
        let (average_accuracy, forgetting) = (number(row, "acc"), number(row, "forget"));
        published.push(Beside {
            version,
            method,
            average_accuracy,
            forgetting,
            average_accuracy_difference: ours.average_accuracy.mean - average_accuracy,
            forgetting_difference: ours.forgetting.mean - forgetting,
        });
    }
    Comparison { ours, published, settings_that_differ, notes, nearest }
}

/// Whether two values are the same; 1 and 1.0 are.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (a, b) => a == b,
    }
}
