//! `cdl compare`: figures of ours beside published ones.

mod ours;
mod published;
mod show;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::Value;

use self::{
    ours::Ours,
    published::{PARTS, Published, Row, Subject},
};
use crate::{failure::Failure, terminal::emit};

/// As many of the nearest subjects are named as can be read.
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

/// How it is written.
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

/// One network beside what was published.
struct Comparison<'a> {
    ours: Ours,
    rows: Vec<&'a Row>,
    /// What differs in the settings, or cannot be known to be the same.
    settings: Vec<Difference>,
    /// What is to be said about a row.
    notes: Vec<String>,
    /// Where no row is about the same: those that come nearest.
    nearest: Vec<Subject>,
}

/// A setting that differs.
struct Difference {
    what: String,
    key: String,
    /// Null where it is not set.
    ours: Value,
    /// Nothing where it is not known.
    published: Option<Value>,
}

/// Puts runs beside the published table.
pub fn compare(args: &CompareArgs) -> Result<(), Failure> {
    let published = Published::read()?;
    let mut comparisons = Vec::new();
    for root in &args.runs {
        for ours in ours::read(root, &published)? {
            comparisons.push(beside(ours, &published));
        }
    }
    emit(&match args.format {
        Format::Table => show::text(&comparisons, &published),
        Format::Markdown => show::markdown(&comparisons, &published),
        Format::Csv => show::csv(&comparisons)?,
        Format::Json => show::json(&comparisons)?,
    })
}

fn beside(ours: Ours, published: &Published) -> Comparison<'_> {
    let rows = published.rows(&ours.subject);
    let (mut settings, mut notes): (Vec<Difference>, Vec<String>) = (Vec::new(), Vec::new());
    for row in &rows {
        for (setting, value) in published.settings(row, ours.role) {
            let own = ours.value(&setting.key);
            if value.as_ref().is_some_and(|value| same(value, &own)) {
                continue;
            }
            // Rows of several versions were made with the same.
            let known = settings.iter().any(|other| other.what == setting.what && other.published == value);
            if !known {
                let (what, key) = (setting.what.clone(), setting.key.clone());
                settings.push(Difference { what, key, ours: own, published: value });
            }
        }
        notes.extend(published.note(row).map(|note| format!("{}, {}: {note}", row.version, row.kd)));
    }
    let nearest = if rows.is_empty() { published.nearest(&ours.subject, NEAREST) } else { Vec::new() };
    Comparison { ours, rows, settings, notes, nearest }
}

/// Whether two values are the same, numbers by what they stand for.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (a, b) => a == b,
    }
}

/// What keeps one subject from being another.
fn apart(ours: &Subject, other: &Subject, published: &Published) -> String {
    let shown = |part: &str, name: &str| match part {
        "teacher" | "student" if name == published::NOTHING => "none".into(),
        "teacher" | "student" => published.network(name),
        _ => name.to_string(),
    };
    let parts = PARTS.iter().zip(ours.iter().zip(other)).filter(|(_, (a, b))| a != b);
    let parts = parts.map(|(part, (a, b))| format!("{part} {} is not {}", shown(part, a), shown(part, b)));
    parts.collect::<Vec<_>>().join(", ")
}

/// A subject as one says it.
fn told(subject: &Subject, published: &Published) -> String {
    let [dataset, teacher, student, learner, distiller, tasks] = subject;
    let networks = match teacher.as_str() {
        published::NOTHING => format!("{} alone", published.network(student)),
        teacher => format!("{} to {}", published.network(teacher), published.network(student)),
    };
    format!("{dataset}, {networks}, {learner}, {distiller}, {tasks} tasks")
}
