//! Means, deviations and paired differences as CSV, JSON, Markdown, LaTeX and plain text. Nothing in them depends on when
//! and where the cells ran.

use cdl_core::{DEFINITIONS, Definition, Role};
use serde_json::{Value, json};

use super::{
    statistics::Spread,
    summary::{Combination, Outcome, Summary},
};
use crate::{
    failure::Failure,
    report::latex_safe,
    terminal::{columns, csv_text},
};

/// Note below the tables.
const NOTE: &str = "Mean ± sample standard deviation over the repetitions. Differences are taken repetition by repetition \
                    (pairs with the same seed and class order), with their 95 % interval by Student's t distribution; few \
                    repetitions make it wide.";

/// A row for each combination, network and definition, all digits.
pub fn csv(summary: &Summary) -> Result<String, Failure> {
    let fixed = "network definition n mean deviation pairs difference difference_deviation difference_low difference_high";
    let header = summary.vary.iter().cloned().chain(fixed.split(' ').map(String::from));
    let mut rows = vec![header.collect::<Vec<_>>()];
    let digits = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
    for (number, combination) in summary.combinations.iter().enumerate() {
        for role in summary.roles() {
            for definition in &DEFINITIONS {
                let spread = combination.spread(role, definition);
                let apart = summary.difference(number, role, definition);
                let interval = apart.and_then(|apart| apart.interval());
                let numbers = [
                    role.as_str().to_string(),
                    definition.name.to_string(),
                    spread.map_or(0, |spread| spread.n).to_string(),
                    digits(spread.map(|spread| spread.mean)),
                    digits(spread.and_then(|spread| spread.deviation)),
                    apart.map(|apart| apart.n.to_string()).unwrap_or_default(),
                    digits(apart.map(|apart| apart.mean)),
                    digits(apart.and_then(|apart| apart.deviation)),
                    digits(interval.map(|interval| interval.0)),
                    digits(interval.map(|interval| interval.1)),
                ];
                rows.push(combination.labels.iter().cloned().chain(numbers).collect());
            }
        }
    }
    csv_text("sweep.csv", rows)
}

/// All of the CSV and the values of every cell, as JSON.
pub fn json(summary: &Summary) -> Result<String, Failure> {
    let spread = |spread: Option<Spread>| match spread {
        Some(Spread { n, mean, deviation }) => json!({ "n": n, "mean": mean, "deviation": deviation }),
        None => Value::Null,
    };
    let named = |names: &[String], labels: &[String]| -> Value {
        names.iter().zip(labels).map(|(name, label)| (name.clone(), Value::from(label.clone()))).collect()
    };
    let one = |number: usize, role: Role, definition: &Definition| {
        let combination = &summary.combinations[number];
        let apart = summary.difference(number, role, definition);
        let interval = apart.and_then(|apart| apart.interval());
        let mut difference = spread(apart);
        if let (Value::Object(difference), Some((low, high))) = (&mut difference, interval) {
            difference.insert("interval_95".into(), json!([low, high]));
        }
        let mut one = spread(combination.spread(role, definition));
        if let Value::Object(one) = &mut one {
            one.insert("values".into(), json!(combination.values(role, definition)));
            one.insert("difference".into(), difference);
        }
        one
    };
    let network = |number: usize, role: Role| -> Value {
        DEFINITIONS.iter().map(|d| (d.name.to_string(), one(number, role, d))).collect()
    };
    let combination = |(number, combination): (usize, &Combination)| {
        let cell = |cell: &Outcome| {
            json!({
                "name": cell.name,
                "repetition": named(&summary.repeat, &cell.labels),
                "done": cell.results.is_some(),
            })
        };
        let mut value = json!({
            "values": named(&summary.vary, &combination.labels),
            "cells": combination.cells.iter().map(cell).collect::<Vec<_>>(),
        });
        for role in summary.roles() {
            value[role.as_str()] = network(number, role);
        }
        value
    };
    let all = json!({
        "varied": summary.vary,
        "repeated": summary.repeat,
        "baseline": summary.base().map(|base| named(&summary.vary, &base.labels)),
        "combinations": summary.combinations.iter().enumerate().map(combination).collect::<Vec<_>>(),
    });
    let text = serde_json::to_string_pretty(&all);
    Ok(text.map_err(|e| Failure::working(format!("summary.json: {e}")))? + "\n")
}

/// Mean and deviation with two digits after the point.
fn mean(spread: Option<Spread>) -> String {
    match spread {
        Some(Spread { mean, deviation: Some(deviation), .. }) => format!("{mean:.2} ± {deviation:.2}"),
        Some(Spread { mean, .. }) => format!("{mean:.2}"),
        None => "–".into(),
    }
}

/// A difference with its deviation and interval.
fn apart(spread: Option<Spread>) -> String {
    let Some(spread) = spread else { return "–".into() };
    let deviation = spread.deviation.map(|deviation| format!(" ± {deviation:.2}")).unwrap_or_default();
    let interval = spread.interval().map(|(low, high)| format!(" [{low:.2}, {high:.2}]"));
    format!("{:+.2}{deviation}{}", spread.mean, interval.unwrap_or_default())
}

/// Cells and repetitions that the means are over.
fn over(summary: &Summary) -> String {
    let repeated = if summary.repeat.is_empty() { "nothing".into() } else { summary.repeat.join(" and ") };
    format!("{} of {} cells done; repeated: {repeated}.", summary.done(), summary.cells())
}

/// The name of the columns of what varies.
fn head(summary: &Summary) -> String {
    if summary.vary.is_empty() { "combination".into() } else { summary.vary.join(", ") }
}

/// Means of one network, or its differences from the baseline.
struct Table {
    role: Role,
    /// The baseline, if these are differences.
    from: Option<String>,
    /// Name, number of values and a cell for each definition.
    rows: Vec<(String, usize, Vec<String>)>,
}

fn tables(summary: &Summary) -> Vec<Table> {
    let mut tables = Vec::new();
    for role in summary.roles() {
        let row = |combination: &Combination| {
            let cells = DEFINITIONS.iter().map(|d| mean(combination.spread(role, d))).collect();
            (combination.title(), combination.done(), cells)
        };
        tables.push(Table { role, from: None, rows: summary.combinations.iter().map(row).collect() });
        let Some(base) = summary.base().filter(|_| summary.combinations.len() > 1) else { continue };
        let others = summary.combinations.iter().enumerate().filter(|(at, _)| *at != summary.baseline);
        let row = |(number, combination): (usize, &Combination)| {
            let apart_of = |definition: &Definition| summary.difference(number, role, definition);
            let pairs = DEFINITIONS.first().and_then(apart_of).map_or(0, |apart| apart.n);
            (combination.title(), pairs, DEFINITIONS.iter().map(|d| apart(apart_of(d))).collect())
        };
        tables.push(Table { role, from: Some(base.title()), rows: others.map(row).collect() });
    }
    tables
}

/// Tables of means and of differences for each network, then the definitions.
pub fn markdown(summary: &Summary) -> String {
    let safe = |text: &str| text.replace('|', "\\|").replace('<', "&lt;").replace(['\n', '\r'], " ");
    let mut text = format!("# {}\n\n{}\n", safe(&summary.name), over(summary));
    for Table { role, from, rows } in tables(summary) {
        let role = role.as_str();
        let (title, n) = match from {
            None => (format!("## {role}"), "n"),
            Some(base) => (format!("Difference of the {role} from {}:", safe(&base)), "pairs"),
        };
        text += &format!("\n{title}\n\n| {} | {n} |", safe(&head(summary)));
        for definition in DEFINITIONS {
            text += &format!(" {} |", definition.title);
        }
        text += &format!("\n|---|---:|{}\n", "---:|".repeat(DEFINITIONS.len()));
        for (name, n, cells) in rows {
            text += &format!("| {} | {n} | {} |\n", safe(&name), cells.join(" | "));
        }
    }
    text += &format!("\n{NOTE}\n\n| definition | formula |\n|---|---|\n");
    for definition in DEFINITIONS {
        text += &format!("| {} | {} |\n", definition.title, safe(definition.formula));
    }
    text
}

/// Two `tabular`s for each network, for the package booktabs, with the definitions in comments.
pub fn latex(summary: &Summary) -> String {
    let mut text = String::from("% needs \\usepackage{booktabs}\n");
    text += &format!("% {}\n", NOTE.replace('±', "+-").replace('%', "percent"));
    for definition in DEFINITIONS {
        text += &format!("% {}: ${}$\n", definition.title, definition.latex);
    }
    let maths = |cell: String| match cell.as_str() {
        "–" => "--".to_string(),
        cell => format!("${}$", cell.replace('±', "\\pm")),
    };
    for Table { role, from, rows } in tables(summary) {
        let (title, n) = match from {
            None => (role.as_str().to_string(), "$n$"),
            Some(base) => (format!("{}, difference from {}", role.as_str(), latex_safe(&base)), "pairs"),
        };
        let columns = "r".repeat(DEFINITIONS.len());
        text += &format!("\n% {title}\n\\begin{{tabular}}{{lr{columns}}}\n\\toprule\n");
        text += &format!("{} & {n}", latex_safe(&head(summary)));
        for definition in DEFINITIONS {
            text += &format!(" & {}", definition.title);
        }
        text += " \\\\\n\\midrule\n";
        for (name, n, cells) in rows {
            let cells: Vec<String> = cells.into_iter().map(maths).collect();
            text += &format!("{} & {n} & {} \\\\\n", latex_safe(&name), cells.join(" & "));
        }
        text += "\\bottomrule\n\\end{tabular}\n";
    }
    text
}

/// The published definitions alone, for the terminal.
pub fn text(summary: &Summary) -> String {
    let mut rows = vec![vec![head(summary), "network".into(), "n".into()]];
    let shown: Vec<&Definition> = DEFINITIONS.iter().take(2).collect();
    rows[0].extend(shown.iter().map(|d| d.title.to_string()));
    if let (Some(base), true) = (summary.base(), summary.combinations.len() > 1) {
        rows[0].extend(shown.iter().map(|d| format!("{} less {}", first_word(d), base.title())));
    }
    for role in summary.roles() {
        for (number, combination) in summary.combinations.iter().enumerate() {
            let mut row = vec![combination.title(), role.as_str().into(), combination.done().to_string()];
            row.extend(shown.iter().map(|d| mean(combination.spread(role, d))));
            if summary.combinations.len() > 1 {
                row.extend(shown.iter().map(|d| apart(summary.difference(number, role, d))));
            }
            rows.push(row);
        }
    }
    columns(&rows)
}

fn first_word(definition: &Definition) -> &'static str {
    definition.title.split(" (").next().unwrap_or(definition.title)
}
