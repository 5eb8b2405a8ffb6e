//! Table of costs: trainable parameters and multiply-accumulate operations (MACs) of one image.

use cdl_core::{train::Cost, traits::Role};
use maud::{Markup, html};

use super::{configuration::Configuration, html, recorded_run::RecordedRun, table_formats::csv};
use crate::failure::Failure;

/// Cost: name (its path in `results.json`, joined by `_`), title, note and value. Titles in lower case are parts of the
/// cost above them.
type Item = (&'static str, &'static str, &'static str, fn(&Cost) -> u64);

const ITEMS: [Item; 9] = [
    (
        "trainable_parameters",
        "Trainable parameters",
        "prompts, keys, heads; for the student also the distiller's",
        |cost| cost.trainable_parameters,
    ),
    ("training_macs_total", "Training step", "MACs of one image, all passes", |cost| {
        cost.training_macs.total
    }),
    ("training_macs_query", "queries", "passes without prompts", |cost| cost.training_macs.query),
    ("training_macs_teacher", "teacher", "while the student learns", |cost| cost.training_macs.teacher),
    ("training_macs_forward", "forward", "with prompts", |cost| cost.training_macs.forward),
    ("training_macs_backward", "backward", "down to the trained parameters", |cost| {
        cost.training_macs.backward
    }),
    ("inference_macs_total", "Inference", "MACs of one image, all passes", |cost| cost.inference_macs.total),
    ("inference_macs_query", "query", "the pass without prompts", |cost| cost.inference_macs.query),
    ("inference_macs_forward", "network", "the pass with prompts", |cost| cost.inference_macs.forward),
];

/// Section of the page; `None` if no run has recorded its cost. The runs of a configuration have the same cost.
pub fn section(configurations: &[Configuration]) -> Option<Markup> {
    let runs: Vec<&RecordedRun> = configurations.iter().map(|configuration| configuration.first).collect();
    if !runs.iter().any(|run| run.roles().any(|role| run.results.cost.of(role).is_some())) {
        return None;
    }
    let several = configurations.len() > 1;
    let head = html! {
        th {}
        @for Configuration { name, first, .. } in configurations {
            @let name = several.then_some(name.as_str());
            @for role in first.roles() { (html::number_head(role.as_str(), name)) }
            @if first.roles().count() == 2 { (html::number_head("ratio", name)) }
        }
    };
    let rows = html! {
        @for (name, title, note, cost) in &ITEMS {
            @let value = |run: &RecordedRun, role: Role| run.results.cost.of(role).as_ref().map(cost);
            tr {
                td class=[title.starts_with(char::is_lowercase).then_some("part")] { (title) small { (note) } }
                @for (index, run) in runs.iter().enumerate() {
                    @for role in run.roles() {
                        @let first = runs.first().filter(|_| index > 0).and_then(|first| value(first, role));
                        @let more = html! { @if let Some(times) = ratio(value(run, role), first) { small { (format!("×{times:.2}")) } } };
                        @let id = format!("{}-{}-{name}", index + 1, role.as_str());
                        (html::number(&id, value(run, role), short, &more))
                    }
                    @if run.roles().count() == 2 {
                        @let times = ratio(value(run, Role::Student), value(run, Role::Teacher));
                        td.n { (times.map_or("–".into(), |times| format!("{times:.3}"))) }
                    }
                }
            }
        }
    };
    Some(html! {
        h2 { "Cost" }
        p {
            "Multiply-accumulate operations (MACs) of the frozen networks for one image, with attention, without heads and \
             losses. The ratio is student to teacher."
            @if several { " Below each value: its ratio to the first configuration." }
        }
        (html::table(&head, &rows))
    })
}

fn ratio(of: Option<u64>, to: Option<u64>) -> Option<f64> {
    let (of, to) = of.zip(to.filter(|to| *to > 0))?;
    Some(of as f64 / to as f64)
}

/// Formats a number with three digits and a unit.
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

/// CSV with a row for each network of each run: parameters, MACs of one image, and time and memory of the run. Fields
/// that were not recorded are empty.
pub fn cost_csv(runs: &[RecordedRun]) -> Result<String, Failure> {
    let head = ["run", "network"].into_iter().chain(ITEMS.iter().map(|(name, ..)| *name));
    let head = head.chain(["wall_seconds", "peak_memory_bytes"]).map(String::from).collect();
    let row = |run: &RecordedRun, role: Role| {
        let cost = run.results.cost.of(role).as_ref();
        let field = |(.., value): &Item| cost.map(|cost| value(cost).to_string()).unwrap_or_default();
        let memory = run.results.peak_memory_bytes.map(|bytes| bytes.to_string()).unwrap_or_default();
        let names = [run.name.clone(), role.as_str().into()].into_iter();
        names.chain(ITEMS.iter().map(field)).chain([run.results.wall_seconds.to_string(), memory]).collect()
    };
    let rows = runs.iter().flat_map(|run| run.roles().map(move |role| row(run, role)));
    csv("cost.csv", head, rows.collect())
}

#[cfg(test)]
mod tests {
    use super::short;

    #[test]
    fn numbers_are_shortened_to_three_digits() {
        for (value, text) in
            [(0, "0"), (9_999, "9999"), (76_810, "76.8 k"), (1_260_000_000, "1.26 G"), (617_000_000, "617 M")]
        {
            assert_eq!(short(value), text);
        }
    }
}
