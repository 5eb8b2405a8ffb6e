//! Comparison of results with the published rows of the same subject: data set, networks, learner, distiller, tasks.

use serde::Serialize;
use serde_json::Value;

use super::{
    own_results::OwnResults,
    published::{Published, Subject, number},
};

/// Maximum number of nearest subjects that are listed.
const MAX_NEAREST: usize = 3;

/// Comparison of one network with the published rows of the same subject.
#[derive(Serialize)]
pub struct Comparison {
    /// Own results.
    #[serde(flatten)]
    pub own: OwnResults,
    /// Published rows of the same subject, the newest version of the paper first.
    pub published: Vec<PublishedRow>,
    /// Settings that differ from those of a row.
    pub settings_that_differ: Vec<Difference>,
    /// Notes about the rows.
    pub notes: Vec<String>,
    /// Nearest subjects of the table, if no row has the same subject.
    pub nearest: Vec<Subject>,
}

/// Published row and its differences: own results minus published ones. All values are in percent.
#[derive(Serialize)]
pub struct PublishedRow {
    pub version: String,
    pub method: String,
    pub average_accuracy: f64,
    pub forgetting: f64,
    pub average_accuracy_difference: f64,
    pub forgetting_difference: f64,
}

/// Setting that differs from the published one, or has no known published value.
#[derive(Serialize)]
pub struct Difference {
    /// Name of the setting for readers.
    pub what: String,
    /// Key of the setting in the configuration, record or results.
    pub key: String,
    /// Own value; null if not set.
    pub ours: Value,
    /// Published value; null if not set or unknown.
    pub published: Value,
    pub published_is_known: bool,
}

/// Compares results with the rows of the table.
pub fn compare_with(own: OwnResults, table: &Published) -> Comparison {
    let rows = table.rows(&own.subject);
    let nearest = if rows.is_empty() { table.nearest(&own.subject, MAX_NEAREST) } else { Vec::new() };
    let (mut published, mut notes) = (Vec::new(), Vec::new());
    let mut settings_that_differ: Vec<Difference> = Vec::new();
    for row in rows {
        for (setting, value) in table.settings(row, own.role) {
            let (what, key) = (setting["what"].clone(), setting["key"].clone());
            let value_here = own.value(&key);
            let published_is_known = value.is_some();
            let published = value.unwrap_or_default();
            // Rows of different versions share settings, so duplicates are skipped.
            let listed = settings_that_differ.iter().any(|other| {
                (&other.what, &other.published, other.published_is_known)
                    == (&what, &published, published_is_known)
            });
            if !(listed || published_is_known && same(&published, &value_here)) {
                let ours = value_here;
                settings_that_differ.push(Difference { what, key, ours, published, published_is_known });
            }
        }
        let (version, method) = (row["version"].clone(), row["kd"].clone());
        notes.extend(table.note(row).map(|note| format!("{version}, {method}: {note}")));
        let (average_accuracy, forgetting) = (number(row, "acc"), number(row, "forget"));
        published.push(PublishedRow {
            version,
            method,
            average_accuracy,
            forgetting,
            average_accuracy_difference: own.average_accuracy.mean - average_accuracy,
            forgetting_difference: own.forgetting.mean - forgetting,
        });
    }
    Comparison { own, published, settings_that_differ, notes, nearest }
}

/// True if two values are equal; 1 equals 1.0.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (a, b) => a == b,
    }
}
