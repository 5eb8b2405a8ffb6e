//! What the networks cost: numbers trained and multiply-adds of one image.

use cdl_core::{Role, cost::Cost};

use super::{Run, html::escape};
use crate::failure::Failure;

/// One figure of a network.
struct Figure {
    /// In the page's identifiers and in CSV: the path in `results.json`, with `_` between its parts.
    name: &'static str,
    /// Whether it is a part of the one above.
    part: bool,
    title: &'static str,
    note: &'static str,
    value: fn(&Cost) -> u64,
}

const FIGURES: [Figure; 9] = [
    Figure {
        name: "trained_numbers",
        part: false,
        title: "Numbers trained",
        note: "prompts, keys, heads; the distiller's with the student's",
        value: |cost| cost.trained_numbers,
    },
    Figure {
        name: "training_macs_total",
        part: false,
        title: "Training step",
        note: "MACs of one image, all passes",
        value: |cost| cost.training_macs.total,
    },
    Figure {
        name: "training_macs_query",
        part: true,
        title: "queries",
        note: "passes without prompts",
        value: |cost| cost.training_macs.query,
    },
    Figure {
        name: "training_macs_teacher",
        part: true,
        title: "teacher",
        note: "while the student learns",
        value: |cost| cost.training_macs.teacher,
    },
    Figure {
        name: "training_macs_forward",
        part: true,
        title: "forward",
        note: "with prompts",
        value: |cost| cost.training_macs.forward,
    },
    Figure {
        name: "training_macs_backward",
        part: true,
        title: "backward",
        note: "down to what is trained",
        value: |cost| cost.training_macs.backward,
    },
    Figure {
        name: "inference_macs_total",
        part: false,
        title: "Inference",
        note: "MACs of one image, all passes",
        value: |cost| cost.inference_macs.total,
    },
    Figure {
        name: "inference_macs_query",
        part: true,
        title: "query",
        note: "the pass without prompts",
        value: |cost| cost.inference_macs.query,
    },
    Figure {
        name: "inference_macs_forward",
        part: true,
        title: "network",
        note: "the pass with prompts",
        value: |cost| cost.inference_macs.forward,
    },
];

/// The section of the page, if any run has recorded its cost.
pub fn table(runs: &[Run]) -> Option<String> {
    let cost = |run: &Run, role: Role| run.results.cost.of(role).copied();
    if !runs.iter().any(|run| run.roles().any(|role| cost(run, role).is_some())) {
        return None;
    }
    let mut table = String::from(
        "<h2>Cost</h2>\n<p>Multiply-adds (MACs) of the frozen networks for one image, attention included; heads and losses \
         left out. The ratio is the student's to the teacher's.",
    );
    if runs.len() > 1 {
        table += " Below each figure stands how many times the first run's it is.";
    }
    table += "</p>\n<div class=\"wide\"><table>\n<thead><tr><th></th>";
    for run in runs {
        let name = match runs.len() {
            1 => String::new(),
            _ => format!("<small>{}</small>", escape(&run.name)),
        };
        for role in run.roles() {
            table += &format!("<th class=\"n\">{}{name}</th>", role.as_str());
        }
        if run.roles().count() == 2 {
            table += &format!("<th class=\"n\">ratio{name}</th>");
        }
    }
    table += "</tr></thead>\n<tbody>\n";
    for figure in &FIGURES {
        table += &format!(
            "<tr><td{}>{}<small>{}</small></td>",
            if figure.part { " class=\"part\"" } else { "" },
            figure.title,
            figure.note
        );
        let value = |run: &Run, role: Role| cost(run, role).map(|cost| (figure.value)(&cost));
        for run in runs {
            for role in run.roles() {
                let first = runs.first().filter(|first| !std::ptr::eq(*first, run));
                let times = first.and_then(|first| ratio(value(run, role), value(first, role)));
                table += &format!(
                    "<td class=\"n\"><data id=\"{}-{}-{}\" value=\"{}\">{}</data>{}</td>",
                    run.number + 1,
                    role.as_str(),
                    figure.name,
                    value(run, role).map_or("null".into(), |value| value.to_string()),
                    value(run, role).map_or("–".into(), short),
                    times.map(|times| format!("<small>×{times:.2}</small>")).unwrap_or_default()
                );
            }
            if run.roles().count() == 2 {
                let times = ratio(value(run, Role::Student), value(run, Role::Teacher));
                let shown = times.map_or("–".into(), |times| format!("{times:.3}"));
                table += &format!("<td class=\"n\">{shown}</td>");
            }
        }
        table += "</tr>\n";
    }
    Some(table + "</tbody>\n</table></div>\n")
}

fn ratio(of: Option<u64>, to: Option<u64>) -> Option<f64> {
    let (of, to) = of.zip(to.filter(|to| *to > 0))?;
    Some(of as f64 / to as f64)
}

/// Three digits and a unit.
fn short(value: u64) -> String {
    let of = |unit: f64, name: &str| {
        let value = value as f64 / unit;
        match value {
            100.0.. => format!("{value:.0} {name}"),
            10.0.. => format!("{value:.1} {name}"),
            _ => format!("{value:.2} {name}"),
        }
    };
    match value {
        1_000_000_000.. => of(1e9, "G"),
        1_000_000.. => of(1e6, "M"),
        10_000.. => of(1e3, "k"),
        _ => value.to_string(),
    }
}

/// A row for each network of each run, as far as it is recorded; MACs of one image, seconds and bytes of the run.
pub fn csv(runs: &[Run]) -> Result<String, Failure> {
    let fail = |reason: String| Failure::working(format!("cost.csv: {reason}"));
    let mut csv = csv::Writer::from_writer(Vec::new());
    let header = ["run", "network"].into_iter().chain(FIGURES.iter().map(|figure| figure.name));
    let header = header.chain(["wall_seconds", "peak_memory_bytes"]);
    csv.write_record(header).map_err(|e| fail(e.to_string()))?;
    for run in runs {
        for role in run.roles() {
            let cost = run.results.cost.of(role);
            let figure =
                |figure: &Figure| cost.map(|cost| (figure.value)(cost).to_string()).unwrap_or_default();
            let memory = run.results.peak_memory_bytes.map(|bytes| bytes.to_string()).unwrap_or_default();
            let row = [run.name.clone(), role.as_str().into()]
                .into_iter()
                .chain(FIGURES.iter().map(figure))
                .chain([run.results.wall_seconds.to_string(), memory]);
            csv.write_record(row).map_err(|e| fail(e.to_string()))?;
        }
    }
    let bytes = csv.into_inner().map_err(|e| fail(e.to_string()))?;
    String::from_utf8(bytes).map_err(|e| fail(e.to_string()))
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
