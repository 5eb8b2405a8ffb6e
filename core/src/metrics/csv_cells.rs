//! Escaping of texts in CSV files that a spreadsheet would take for formulas.

use std::borrow::Cow;

/// First characters of a formula in the usual spreadsheets.
const FORMULA: [char; 6] = ['=', '+', '-', '@', '\t', '\r'];

/// Returns a cell with `'` before a text that a spreadsheet would run as a formula, such as a class named `=1+1`.
/// Numbers and all other texts stay unchanged.
pub fn escape_cell(text: &str) -> Cow<'_, str> {
    match is_formula(text) && text.parse::<f64>().is_err() {
        true => format!("'{text}").into(),
        false => text.into(),
    }
}

/// Returns the text of a cell written by [`escape_cell`].
pub(crate) fn unescape_cell(cell: &str) -> &str {
    match cell.strip_prefix('\'') {
        Some(text) if is_formula(text) => text,
        _ => cell,
    }
}

/// Returns whether a text is a formula, possibly after the marks of [`escape_cell`].
fn is_formula(text: &str) -> bool {
    text.trim_start_matches('\'').starts_with(FORMULA)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formulas_are_escaped_and_numbers_are_not() {
        for (text, cell) in [
            ("=HYPERLINK(\"http://x\")", "'=HYPERLINK(\"http://x\")"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("-x", "'-x"),
            ("'=x", "''=x"),
            ("-1.5", "-1.5"),
            ("+2e3", "+2e3"),
            ("cat", "cat"),
            ("'quoted'", "'quoted'"),
            ("", ""),
        ] {
            assert_eq!(escape_cell(text), cell);
            assert_eq!(unescape_cell(cell), text);
        }
    }
}
