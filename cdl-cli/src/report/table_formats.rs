//! Tables as CSV, Markdown and LaTeX.

use cdl_core::metrics::{DEFINITIONS, escape_cell};

use crate::failure::Failure;

/// CSV table. Errors name the file `name`.
pub fn csv(name: &str, head: Vec<String>, rows: Vec<Vec<String>>) -> Result<String, Failure> {
    let fail = |reason: String| Failure::working(format!("{name}: {reason}"));
    let mut csv = csv::Writer::from_writer(Vec::new());
    for row in [head].into_iter().chain(rows) {
        csv.write_record(row.iter().map(|cell| escape_cell(cell).into_owned()))
            .map_err(|e| fail(e.to_string()))?;
    }
    let bytes = csv.into_inner().map_err(|e| fail(e.to_string()))?;
    String::from_utf8(bytes).map_err(|e| fail(e.to_string()))
}

/// Formats a value with all digits; empty if there is none.
pub fn digits(value: Option<f64>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

/// `head` followed by the title of each metric.
pub fn with_metrics(head: &[&str]) -> Vec<String> {
    head.iter().copied().chain(DEFINITIONS.map(|definition| definition.title)).map(String::from).collect()
}

/// Markdown table. The first `texts` columns are left-aligned, the others right-aligned.
pub fn markdown(texts: usize, head: &[String], rows: &[Vec<String>]) -> String {
    let line = |row: &[String]| {
        let cells: Vec<String> = row.iter().map(|cell| markdown_safe(cell)).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let rule = "---|".repeat(texts) + &"---:|".repeat(head.len() - texts);
    let rows: String = rows.iter().map(|row| line(row)).collect();
    format!("{}|{rule}\n{rows}", line(head))
}

/// Markdown table with the definitions of all metrics.
pub fn markdown_definitions() -> String {
    let rows =
        DEFINITIONS.map(|definition| [definition.title, definition.formula].map(String::from).to_vec());
    markdown(2, &["metric".into(), "formula".into()], &rows)
}

/// Escapes a text for a cell of a Markdown table.
pub fn markdown_safe(text: &str) -> String {
    let escaped = ["\\", "|", "`"]
        .iter()
        .fold(text.to_owned(), |text, special| text.replace(special, &format!("\\{special}")));
    // Neither a link nor an image, which a viewer would fetch.
    escaped.replace("](", "]\\(").replace('<', "&lt;").replace(['\n', '\r'], " ")
}

/// Head of a LaTeX file: comments with the package needed, `note` and the definitions of all metrics.
pub fn latex_head(note: &str) -> String {
    let lines = DEFINITIONS.map(|definition| format!("% {}: ${}$\n", definition.title, definition.latex));
    format!("% needs \\usepackage{{booktabs}}\n{note}{}", lines.concat())
}

/// LaTeX `tabular` with booktabs rules. The first `texts` columns are plain text and left-aligned, the others are LaTeX
/// code and right-aligned.
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

/// Escapes a text for LaTeX.
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
    fn special_characters_of_markdown_are_escaped() {
        for (text, safe) in [
            ("kd|x", "kd\\|x"),
            ("\\|", "\\\\\\|"),
            ("![t](http://x/t.png)", "![t]\\(http://x/t.png)"),
            ("pool=[1, 2]", "pool=[1, 2]"),
            ("<b>`c`\n", "&lt;b>\\`c\\` "),
        ] {
            assert_eq!(super::markdown_safe(text), safe);
        }
    }

    #[test]
    fn special_characters_of_latex_are_escaped() {
        assert_eq!(super::latex_safe("a_b & 5%\\^"), "a\\_b \\& 5\\%\\textbackslash{}\\textasciicircum{}");
    }
}
