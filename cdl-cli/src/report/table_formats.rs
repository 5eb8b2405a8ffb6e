//! Tables as CSV, Markdown and LaTeX.

use cdl_core::metrics::DEFINITIONS;

use crate::failure::Failure;

/// Rows under a head as CSV; `name` names the file in errors.
pub fn csv(name: &str, head: Vec<String>, rows: Vec<Vec<String>>) -> Result<String, Failure> {
    let fail = |reason: String| Failure::working(format!("{name}: {reason}"));
    let mut csv = csv::Writer::from_writer(Vec::new());
    for row in [head].into_iter().chain(rows) {
        csv.write_record(row).map_err(|e| fail(e.to_string()))?;
    }
    let bytes = csv.into_inner().map_err(|e| fail(e.to_string()))?;
    String::from_utf8(bytes).map_err(|e| fail(e.to_string()))
}

/// All digits, nothing where there is no value.
pub fn digits(value: Option<f64>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

/// `head` and a column title for each definition.
pub fn with_definitions(head: &[&str]) -> Vec<String> {
    head.iter().copied().chain(DEFINITIONS.map(|definition| definition.title)).map(String::from).collect()
}

/// Rows under a head as Markdown, columns from `texts` on to the right.
pub fn markdown(texts: usize, head: &[String], rows: &[Vec<String>]) -> String {
    let line = |row: &[String]| {
        let cells: Vec<String> = row.iter().map(|cell| markdown_safe(cell)).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let rule = "---|".repeat(texts) + &"---:|".repeat(head.len() - texts);
    let rows: String = rows.iter().map(|row| line(row)).collect();
    format!("{}|{rule}\n{rows}", line(head))
}

/// Table of all definitions as Markdown.
pub fn markdown_definitions() -> String {
    let rows =
        DEFINITIONS.map(|definition| [definition.title, definition.formula].map(String::from).to_vec());
    markdown(2, &["definition".into(), "formula".into()], &rows)
}

/// `text` in one line, with nothing that Markdown would take for part of a table or a tag.
pub fn markdown_safe(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;").replace(['\n', '\r'], " ")
}

/// Beginning of a LaTeX file: comments with `note` and all definitions.
pub fn latex_head(note: &str) -> String {
    let lines = DEFINITIONS.map(|definition| format!("% {}: ${}$\n", definition.title, definition.latex));
    format!("% needs \\usepackage{{booktabs}}\n{note}{}", lines.concat())
}

/// Rows under a head as a `tabular` for the package booktabs, columns from `texts` on to the right. The first `texts` cells
/// of a row are any text, the others LaTeX.
pub fn latex(texts: usize, head: &[String], rows: &[Vec<String>]) -> String {
    let line = |row: &[String]| {
        let cells = row.iter().enumerate();
        let cells = cells.map(|(at, cell)| if at < texts { latex_safe(cell) } else { cell.clone() });
        cells.collect::<Vec<_>>().join(" & ") + " \\\\\n"
    };
    let columns = "l".repeat(texts) + &"r".repeat(head.len() - texts);
    let rows: String = rows.iter().map(|row| line(row)).collect();
    format!(
        "\\begin{{tabular}}{{{columns}}}\n\\toprule\n{}\\midrule\n{rows}\\bottomrule\n\\end{{tabular}}\n",
        line(head)
    )
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
