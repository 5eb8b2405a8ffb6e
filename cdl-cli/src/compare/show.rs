//! Comparisons as plain text, Markdown, CSV and JSON.

use serde_json::{Value, json};

use super::{Comparison, apart, published::Published, told};
use crate::{failure::Failure, sweep::statistics::Spread, terminal::columns};

/// A figure with its deviation, where there are several runs.
fn figure(spread: &Spread) -> String {
    match spread.deviation {
        Some(deviation) => format!("{:.2} ± {deviation:.2}", spread.mean),
        None => format!("{:.2}", spread.mean),
    }
}

/// A value as one reads it.
pub fn shown(value: &Value) -> String {
    match value {
        Value::Null => "not set".into(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

/// The value of a setting that may not be known.
fn known(value: Option<&Value>) -> String {
    value.map_or("not stated".into(), shown)
}

/// The head and rows of our figures beside the published ones.
fn figures(comparison: &Comparison<'_>) -> Vec<Vec<String>> {
    let ours = &comparison.ours;
    let head = ["", "average accuracy", "ours less it", "forgetting", "ours less it"].map(String::from);
    let runs = if ours.accuracy.n == 1 { "1 run".into() } else { format!("{} runs", ours.accuracy.n) };
    let (none, own) = (String::new, format!("ours, {runs}"));
    let mut rows =
        vec![head.into(), vec![own, figure(&ours.accuracy), none(), figure(&ours.forgetting), none()]];
    rows.extend(comparison.rows.iter().map(|row| {
        vec![
            format!("{}, {}", row.version, row.kd),
            format!("{:.2}", row.accuracy),
            format!("{:+.2}", ours.accuracy.mean - row.accuracy),
            format!("{:.2}", row.forgetting),
            format!("{:+.2}", ours.forgetting.mean - row.forgetting),
        ]
    }));
    rows
}

/// The head and rows of settings that differ.
fn settings(comparison: &Comparison<'_>) -> Vec<Vec<String>> {
    let head = ["setting", "ours", "published"].map(String::from);
    let row = |difference: &super::Difference| {
        let (ours, published) = (shown(&difference.ours), known(difference.published.as_ref()));
        vec![difference.what.clone(), ours, published]
    };
    std::iter::once(head.into()).chain(comparison.settings.iter().map(row)).collect()
}

/// What a comparison is about, and why there is no row, if there is none.
fn title(comparison: &Comparison<'_>, published: &Published) -> (String, Vec<String>) {
    let ours = &comparison.ours;
    let title = format!("{}, {}: {}", ours.title, ours.role.as_str(), told(&ours.subject, published));
    let near = comparison
        .nearest
        .iter()
        .map(|other| format!("{}: {}", told(other, published), apart(&ours.subject, other, published)));
    (title, near.collect())
}

/// For the terminal.
pub fn text(comparisons: &[Comparison<'_>], published: &Published) -> String {
    let one = |comparison: &Comparison<'_>| {
        let (title, near) = title(comparison, published);
        let mut text = format!("{title}\n");
        if comparison.rows.is_empty() {
            let ours = &comparison.ours;
            text += &format!(
                "no published row is about this; ours: average accuracy {}, forgetting {}\nthe nearest rows:\n",
                figure(&ours.accuracy),
                figure(&ours.forgetting)
            );
            near.iter().for_each(|near| text += &format!("  {near}\n"));
            return text;
        }
        text += &columns(&figures(comparison));
        text.push('\n');
        text += &columns(&settings(comparison));
        comparison.notes.iter().for_each(|note| text += &format!("note: {note}\n"));
        text
    };
    comparisons.iter().map(one).collect::<Vec<_>>().join("\n")
}

/// For a page.
pub fn markdown(comparisons: &[Comparison<'_>], published: &Published) -> String {
    let safe = |text: &str| text.replace('|', "\\|").replace('<', "&lt;").replace(['\n', '\r'], " ");
    let table = |rows: Vec<Vec<String>>| {
        let mut text = String::new();
        for (at, row) in rows.iter().enumerate() {
            let cells: Vec<String> = row.iter().map(|cell| safe(cell)).collect();
            text += &format!("| {} |\n", cells.join(" | "));
            if at == 0 {
                text += &format!("|{}\n", "---|".repeat(row.len()));
            }
        }
        text
    };
    let one = |comparison: &Comparison<'_>| {
        let (title, near) = title(comparison, published);
        let mut text = format!("### {}\n\n{}", safe(&title), table(figures(comparison)));
        if comparison.rows.is_empty() {
            text += "\nNo published row is about this. The nearest rows:\n\n";
            near.iter().for_each(|near| text += &format!("- {}\n", safe(near)));
            return text;
        }
        text += &format!("\n{}", table(settings(comparison)));
        comparison.notes.iter().for_each(|note| text += &format!("\n{}\n", safe(note)));
        text
    };
    comparisons.iter().map(one).collect::<Vec<_>>().join("\n")
}

/// A line for each published row, all digits; a network without one has a line without it.
pub fn csv(comparisons: &[Comparison<'_>]) -> Result<String, Failure> {
    let fail = |reason: String| Failure::working(format!("CSV: {reason}"));
    let mut csv = csv::Writer::from_writer(Vec::new());
    let mut put = |row: &[String]| csv.write_record(row).map_err(|e| fail(e.to_string()));
    put(&[
        "run",
        "network",
        "dataset",
        "teacher",
        "student",
        "learner",
        "distiller",
        "tasks",
        "n",
        "average_accuracy",
        "average_accuracy_deviation",
        "forgetting",
        "forgetting_deviation",
        "version",
        "published_method",
        "published_average_accuracy",
        "published_forgetting",
        "settings_that_differ",
    ]
    .map(String::from))?;
    for comparison in comparisons {
        let ours = &comparison.ours;
        let digits = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
        let mut own = vec![ours.title.clone(), ours.role.as_str().into()];
        own.extend(ours.subject.iter().cloned());
        own.push(ours.accuracy.n.to_string());
        for spread in [&ours.accuracy, &ours.forgetting] {
            own.extend([spread.mean.to_string(), digits(spread.deviation)]);
        }
        let differ: Vec<String> = (comparison.settings.iter())
            .map(|one| {
                format!("{}: {}, published {}", one.what, shown(&one.ours), known(one.published.as_ref()))
            })
            .collect();
        for row in &comparison.rows {
            let theirs = [
                row.version.clone(),
                row.kd.clone(),
                row.accuracy.to_string(),
                row.forgetting.to_string(),
                differ.join("; "),
            ];
            put(&[&own[..], &theirs].concat())?;
        }
        if comparison.rows.is_empty() {
            put(&[&own[..], &std::array::from_fn::<_, 5, _>(|_| String::new())].concat())?;
        }
    }
    let bytes = csv.into_inner().map_err(|e| fail(e.to_string()))?;
    String::from_utf8(bytes).map_err(|e| fail(e.to_string()))
}

/// All of it.
pub fn json(comparisons: &[Comparison<'_>]) -> Result<String, Failure> {
    let spread =
        |spread: &Spread| json!({ "n": spread.n, "mean": spread.mean, "deviation": spread.deviation });
    let subject = |subject: &super::Subject| -> Value {
        let names = ["dataset", "teacher", "student", "learner", "distiller", "tasks"];
        names.into_iter().zip(subject).map(|(name, value)| (name.to_string(), json!(value))).collect()
    };
    let one = |comparison: &Comparison<'_>| {
        let ours = &comparison.ours;
        let row = |row: &&super::Row| {
            json!({
                "version": row.version,
                "method": row.kd,
                "average_accuracy": row.accuracy,
                "forgetting": row.forgetting,
                "average_accuracy_difference": ours.accuracy.mean - row.accuracy,
                "forgetting_difference": ours.forgetting.mean - row.forgetting,
            })
        };
        let setting = |one: &super::Difference| {
            let published = one.published.clone();
            json!({
                "what": one.what,
                "key": one.key,
                "ours": one.ours,
                "published": published,
                "published_is_known": one.published.is_some(),
            })
        };
        json!({
            "run": ours.title,
            "network": ours.role.as_str(),
            "subject": subject(&ours.subject),
            "average_accuracy": spread(&ours.accuracy),
            "forgetting": spread(&ours.forgetting),
            "published": comparison.rows.iter().map(row).collect::<Vec<_>>(),
            "settings_that_differ": comparison.settings.iter().map(setting).collect::<Vec<_>>(),
            "notes": comparison.notes,
            "nearest": comparison.nearest.iter().map(subject).collect::<Vec<_>>(),
        })
    };
    let text = serde_json::to_string_pretty(&comparisons.iter().map(one).collect::<Vec<_>>());
    Ok(text.map_err(|e| Failure::working(format!("JSON: {e}")))? + "\n")
}
