//! Results on standard output, and their formatting as text.

use std::{
    borrow::Cow,
    io::{ErrorKind, Write, stdout},
    path::Path,
};

use cdl_core::{
    metrics::Summary,
    run::directory::Results,
    traits::{BackboneSpec, HeadsFrom},
};
use serde::Serialize;

use crate::failure::Failure;

/// Replaces characters that control a terminal or reorder text by escapes such as `\u{1b}`. Names of files and folders,
/// classes and tensors may contain them. Line breaks and tabs stay.
pub fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, |character| character.escape_unicode().to_string())
}

fn escaped(text: &str, escape: impl Fn(char) -> String) -> Cow<'_, str> {
    let reorders = |character| matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let kept = |character: char| {
        matches!(character, '\n' | '\t') || !(character.is_control() || reorders(character))
    };
    if text.chars().all(kept) {
        return Cow::Borrowed(text);
    }
    text.chars()
        .map(|character| if kept(character) { character.to_string() } else { escape(character) })
        .collect()
}

/// Writes results to standard output. A closed pipe, as in `cdl list | head`, is not a failure.
pub fn emit(text: &str) -> Result<(), Failure> {
    write(&printable(text))
}

fn write(text: &str) -> Result<(), Failure> {
    let mut out = stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::working(format!("standard output cannot be written: {e}")))
        }
        _ => Ok(()),
    }
}

/// Writes a value to standard output as indented JSON.
pub fn emit_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value);
    let text = text.map_err(|e| Failure::working(format!("the result cannot be written as JSON: {e}")))?;
    // These characters occur in strings only, and all of them have four hexadecimal digits.
    let text = escaped(&text, |character| format!("\\u{:04x}", u32::from(character)));
    write(&format!("{text}\n"))
}

/// Formats a number with its noun, given in the singular: `1 task`, `2 tasks`, `2 classes`.
pub fn count(number: usize, noun: &str) -> String {
    let ending = match (number, noun.ends_with('s')) {
        (1, _) => "",
        (_, true) => "es",
        (_, false) => "s",
    };
    format!("{number} {noun}{ending}")
}

/// Formats the number of a network's attention heads, with its origin if neither settings nor files state it.
pub fn heads(spec: &BackboneSpec) -> String {
    let heads = count(spec.heads, "head");
    match spec.heads_from {
        HeadsFrom::Stated => heads,
        HeadsFrom::UsualForWidth => format!("{heads} as usual for this width"),
        HeadsFrom::GuessedFromWidth => format!("{heads} guessed from the width"),
    }
}

/// Quotes a path for a shell, for commands in messages.
pub fn shell_quoted(path: &Path) -> String {
    let path = path.to_string_lossy();
    shlex::try_quote(&path).map_or_else(|_| path.to_string(), |quoted| quoted.into_owned())
}

/// Average accuracy of each trained network, as `teacher 81.25 %`.
pub fn averages(results: &Results) -> Vec<String> {
    let networks = [("teacher", &results.teacher), ("student", &results.student)].into_iter();
    let trained = networks.filter_map(|(name, summary)| Some((name, summary.as_ref()?.average_accuracy)));
    trained.map(|(name, accuracy)| format!("{name} {accuracy:.2} %")).collect()
}

/// Formats the accuracy matrix, with a row for each learned task, and the averages below it.
pub fn accuracy_table(title: &str, summary: &Summary) -> String {
    let rows = summary.accuracy_matrix.rows();
    let mut text = format!("{title}: accuracy in % on each task, after learning task\n      ");
    for task in 1..=rows.len() {
        text += &format!("{:>8}", format!("task {task}"));
    }
    for (index, row) in rows.iter().enumerate() {
        text += &format!("\n{:>6}", index + 1);
        for accuracy in row {
            text += &format!("{accuracy:>8.2}");
        }
    }
    let Summary { average_accuracy, forgetting, average_incremental_accuracy: incremental, .. } = summary;
    let Summary { forgetting_from_best: from_best, backward_transfer: backward, .. } = summary;
    text += &format!(
        "\n  average accuracy {average_accuracy:.2} %, forgetting {forgetting:.2} (published definitions)\n  \
         average incremental accuracy {incremental:.2} %, forgetting from best {from_best:.2}, \
         backward transfer {backward:.2}\n"
    );
    let over_images = summary.accuracy_over_images.zip(summary.incremental_accuracy_over_images);
    if let Some((last, incremental)) = over_images {
        text += &format!(
            "  accuracy over images {last:.2} %, incremental accuracy over images {incremental:.2} %\n"
        );
    }
    text
}

/// Formats rows of cells as aligned columns. The first row contains the column titles.
pub fn columns(rows: &[Vec<String>]) -> String {
    let width = |column: usize| rows.iter().filter_map(|row| Some(row.get(column)?.chars().count())).max();
    let widths: Vec<usize> = (0..).map_while(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text += cells.join("  ").trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        for (text, expected) in [
            ("plain, ünïcode\n\ttext", "plain, ünïcode\n\ttext"),
            ("\u{1b}[2J", "\\u{1b}[2J"),
            ("a\rb\u{9b}c\u{7f}", "a\\u{d}b\\u{9b}c\\u{7f}"),
            ("exe\u{202e}gpj", "exe\\u{202e}gpj"),
        ] {
            assert_eq!(printable(text), expected);
        }
    }
}
