//! Table of costs: trained numbers and multiply-adds of one image.

use cdl_core::traits::Role;
use maud::{Markup, html};

use super::{html, recorded_run::RecordedRun, table_formats::csv};
use crate::failure::Failure;

/// Place of a figure in a network's part of `results.json`, title and note. Parts of the figure before them have a title in
/// small letters.
const FIGURES: [(&str, &str, &str); 9] = [
    ("/trained_numbers", "Numbers trained", "prompts, keys, heads; the distiller's with the student's"),
    ("/training_macs/total", "Training step", "MACs of one image, all passes"),
    ("/training_macs/query", "queries", "passes without prompts"),
    ("/training_macs/teacher", "teacher", "while the student learns"),
    ("/training_macs/forward", "forward", "with prompts"),
    ("/training_macs/backward", "backward", "down to what is trained"),
    ("/inference_macs/total", "Inference", "MACs of one image, all passes"),
    ("/inference_macs/query", "query", "the pass without prompts"),
    ("/inference_macs/forward", "network", "the pass with prompts"),
];

/// Figure of a network, if it is recorded.
fn value(run: &RecordedRun, role: Role, place: &str) -> Option<u64> {
    serde_json::json!(run.results.cost.of(role)).pointer(place)?.as_u64()
}

/// Name of a figure in CSV and on the page.
fn name(place: &str) -> String {
    place[1..].replace('/', "_")
}

/// Section of the page, if any run has recorded its cost.
pub fn section(runs: &[RecordedRun]) -> Option<Markup> {
    if !runs.iter().any(|run| run.roles().any(|role| run.results.cost.of(role).is_some())) {
        return None;
    }
    let head = html! {
        th {}
        @for run in runs {
            @let name = (runs.len() > 1).then_some(run.name.as_str());
            @for role in run.roles() { (html::number_head(role.as_str(), name)) }
            @if run.roles().count() == 2 { (html::number_head("ratio", name)) }
        }
    };
    let rows = html! {
        @for (place, title, note) in FIGURES {
            tr {
                td class=[title.starts_with(char::is_lowercase).then_some("part")] { (title) small { (note) } }
                @for (index, run) in runs.iter().enumerate() {
                    @for role in run.roles() {
                        @let own = value(run, role, place);
                        @let first = runs.first().filter(|_| index > 0).and_then(|first| value(first, role, place));
                        @let more = html! { @if let Some(times) = ratio(own, first) { small { (format!("×{times:.2}")) } } };
                        (html::number((index, role, &name(place)), own, short, &more))
                    }
                    @if run.roles().count() == 2 {
                        @let times = ratio(value(run, Role::Student, place), value(run, Role::Teacher, place));
                        td.n { (times.map_or("–".into(), |times| format!("{times:.3}"))) }
                    }
                }
            }
        }
    };
    Some(html! {
        h2 { "Cost" }
        p {
            "Multiply-adds (MACs) of the frozen networks for one image, attention included; heads and losses left out. The \
             ratio is the student's to the teacher's."
            @if runs.len() > 1 { " Below each figure stands how many times the first run's it is." }
        }
        (html::table(&head, &rows))
    })
}

fn ratio(of: Option<u64>, to: Option<u64>) -> Option<f64> {
    let (of, to) = of.zip(to.filter(|to| *to > 0))?;
    Some(of as f64 / to as f64)
}

/// Three digits and a unit.
fn short(value: u64) -> String {
    let (scaled, unit) = match value {
        1_000_000_000.. => (value as f64 / 1e9, "G"),
        1_000_000.. => (value as f64 / 1e6, "M"),
        10_000.. => (value as f64 / 1e3, "k"),
        _ => return value.to_string(),
    };
    match scaled {
        100.0.. => format!("{scaled:.0} {unit}"),
        10.0.. => format!("{scaled:.1} {unit}"),
        _ => format!("{scaled:.2} {unit}"),
    }
}

/// A row for each network of each run, as far as it is recorded; MACs of one image, seconds and bytes of the run.
pub fn cost_csv(runs: &[RecordedRun]) -> Result<String, Failure> {
    let text = |value: Option<u64>| value.map(|value| value.to_string()).unwrap_or_default();
    let mut head: Vec<String> = ["run", "network"].map(String::from).into();
    head.extend(FIGURES.map(|(place, ..)| name(place)));
    head.extend(["wall_seconds", "peak_memory_bytes"].map(String::from));
    let mut rows = Vec::new();
    for run in runs {
        for role in run.roles() {
            let mut row = vec![run.name.clone(), role.as_str().into()];
            row.extend(FIGURES.map(|(place, ..)| text(value(run, role, place))));
            row.extend([run.results.wall_seconds.to_string(), text(run.results.peak_memory_bytes)]);
            rows.push(row);
        }
    }
    csv("cost.csv", head, rows)
}

#[cfg(test)]
mod tests {
    use super::short;

    #[test]
    fn figures_have_three_digits() {
        for (value, text) in
            [(0, "0"), (9_999, "9999"), (76_810, "76.8 k"), (1_260_000_000, "1.26 G"), (617_000_000, "617 M")]
        {
            assert_eq!(short(value), text);
        }
    }
}
