//! `cdl compare`: results of runs beside published ones.

mod ours;
mod published;
mod show;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::Value;

use self::{
    ours::Ours,
    published::{Published, Subject},
};
use crate::{Failure, emit};

/// Number of nearest subjects that can be read at a glance.
const NEAREST: usize = 3;

/// Arguments of `cdl compare`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cdl compare runs/cifar100 --paper
  cdl compare sweeps/distillers --paper --format markdown

Each network of a run, or of each combination of a sweep, stands beside the rows of the published table that are about
the same data set, networks, learner, distiller and number of tasks, in every version of the paper, with everything that
differs in the settings. A teacher is compared with the row of a single network. Runs side by side: `cdl report`.")]
pub struct CompareArgs {
    /// Directories of runs or sweeps
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// With the published results, the only ones that this program carries
    #[arg(long, required = true)]
    paper: bool,
    /// How it is written
    #[arg(long, value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    format: Format,
}

/// Output formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For the terminal
    Table,
    /// For a page
    Markdown,
    /// A line for each published row
    Csv,
    /// All of it
    Json,
}

/// One network beside the published rows about the same subject.
#[derive(Serialize)]
struct Comparison {
    #[serde(flatten)]
    ours: Ours,
    published: Vec<Beside>,
    settings_that_differ: Vec<Difference>,
    /// Notes about the rows.
    notes: Vec<String>,
    /// Nearest subjects of the table, where no row is about the same.
    nearest: Vec<Subject>,
}

/// Row of the table, and our figures less its figures.
#[derive(Serialize)]
struct Beside {
    version: String,
    method: String,
    average_accuracy: f64,
    forgetting: f64,
    average_accuracy_difference: f64,
    forgetting_difference: f64,
}

/// Setting that differs, or cannot be known to be the same.
#[derive(Serialize)]
struct Difference {
    what: String,
    key: String,
    /// Null where it is not set.
    ours: Value,
    /// Null where it is not set or not known.
    published: Value,
    published_is_known: bool,
}

/// Compares runs with the published table.
pub fn compare(args: &CompareArgs) -> Result<(), Failure> {
    let published = Published::read()?;
    let mut comparisons = Vec::new();
    for root in &args.runs {
        comparisons.extend(ours::read(root, &published)?.into_iter().map(|ours| beside(ours, &published)));
    }
    emit(&match args.format {
        Format::Table | Format::Markdown => show::people(&comparisons, &published, args.format),
        Format::Csv => show::csv(&comparisons)?,
        Format::Json => format!("{:#}\n", serde_json::json!(comparisons)),
    })
}

fn beside(ours: Ours, table: &Published) -> Comparison {
    let rows = table.rows(&ours.subject);
    let nearest = if rows.is_empty() { table.nearest(&ours.subject, NEAREST) } else { Vec::new() };
    let (mut published, mut notes) = (Vec::new(), Vec::new());
    let mut settings_that_differ: Vec<Difference> = Vec::new();
    for row in rows {
        for (setting, value) in table.settings(row, ours.role) {
            let own = ours.value(setting.get("key"));
            let (what, key) = (setting.get("what").to_string(), setting.get("key").to_string());
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
        let (version, method) = (row.get("version").to_string(), row.get("kd").to_string());
        notes.extend(table.note(row).map(|note| format!("{version}, {method}: {note}")));
        let (average_accuracy, forgetting) = (row.number("acc"), row.number("forget"));
        let average_accuracy_difference = ours.average_accuracy.mean - average_accuracy;
        let forgetting_difference = ours.forgetting.mean - forgetting;
        published.push(Beside {
            version,
            method,
            average_accuracy,
            forgetting,
            average_accuracy_difference,
            forgetting_difference,
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
