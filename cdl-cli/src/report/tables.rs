//! The summary as CSV, Markdown and LaTeX: a row for each network of each run.

use cdl_core::{DEFINITIONS, Role};

use super::Run;
use crate::failure::Failure;

fn rows(runs: &[Run]) -> impl Iterator<Item = (&Run, Role, Vec<Option<f64>>)> {
    runs.iter().flat_map(|run| {
        run.roles().map(move |role| {
            let value = |definition: &cdl_core::Definition| run.summary(role).and_then(definition.value);
            (run, role, DEFINITIONS.iter().map(value).collect())
        })
    })
}

/// All digits; an empty field where a definition has no value.
pub fn csv(runs: &[Run]) -> Result<String, Failure> {
    let fail = |reason: String| Failure::working(format!("summary.csv: {reason}"));
    let mut csv = csv::Writer::from_writer(Vec::new());
    let header = ["run", "network"].into_iter().chain(DEFINITIONS.iter().map(|definition| definition.name));
    csv.write_record(header).map_err(|e| fail(e.to_string()))?;
    for (run, role, values) in rows(runs) {
        let values = values.into_iter().map(|value| value.map(|value| value.to_string()).unwrap_or_default());
        let row = [run.name.clone(), role.as_str().into()].into_iter().chain(values);
        csv.write_record(row).map_err(|e| fail(e.to_string()))?;
    }
    let bytes = csv.into_inner().map_err(|e| fail(e.to_string()))?;
    String::from_utf8(bytes).map_err(|e| fail(e.to_string()))
}

/// Two digits after the point, then the definitions.
pub fn markdown(runs: &[Run]) -> String {
    let safe = |text: &str| text.replace('|', "\\|").replace('<', "&lt;").replace(['\n', '\r'], " ");
    let mut text = String::from("| run | network |");
    for definition in DEFINITIONS {
        text += &format!(" {} |", definition.title);
    }
    text += &format!("\n|---|---|{}\n", "---:|".repeat(DEFINITIONS.len()));
    for (run, role, values) in rows(runs) {
        text += &format!("| {} | {} |", safe(&run.name), role.as_str());
        for value in values {
            text += &format!(" {} |", value.map_or("–".into(), |value| format!("{value:.2}")));
        }
        text.push('\n');
    }
    text += "\n| definition | formula |\n|---|---|\n";
    for definition in DEFINITIONS {
        text += &format!("| {} | {} |\n", definition.title, safe(definition.formula));
    }
    text
}

/// A `tabular` for the package booktabs, with the definitions in comments.
pub fn latex(runs: &[Run]) -> String {
    let mut text = String::from("% needs \\usepackage{booktabs}\n");
    for definition in DEFINITIONS {
        text += &format!("% {}: ${}$\n", definition.title, definition.latex);
    }
    text += &format!("\\begin{{tabular}}{{ll{}}}\n\\toprule\nRun & Network", "r".repeat(DEFINITIONS.len()));
    for definition in DEFINITIONS {
        text += &format!(" & {}", definition.title);
    }
    text += " \\\\\n\\midrule\n";
    for (run, role, values) in rows(runs) {
        text += &format!("{} & {}", latex_safe(&run.name), role.as_str());
        for value in values {
            text += &value.map_or(" & --".into(), |value| format!(" & ${value:.2}$"));
        }
        text += " \\\\\n";
    }
    text + "\\bottomrule\n\\end{tabular}\n"
}

/// `text` with nothing in it that LaTeX would take for more than text.
pub fn latex_safe(text: &str) -> String {
    let mut safe = String::new();
    for c in text.chars() {
        match c {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => safe.extend(['\\', c]),
            '\\' => safe += "\\textbackslash{}",
            '~' => safe += "\\textasciitilde{}",
            '^' => safe += "\\textasciicircum{}",
            c if c.is_control() => safe.push(' '),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    #[test]
    fn latex_takes_names_for_text() {
        assert_eq!(super::latex_safe("a_b & 5%\\^"), "a\\_b \\& 5\\%\\textbackslash{}\\textasciicircum{}");
    }
}
