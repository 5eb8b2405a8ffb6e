//! Means, deviations and paired differences as CSV, JSON, Markdown, LaTeX and plain text. The tables do not depend on
//! when and where the cells ran.

use cdl_core::{
    metrics::{DEFINITIONS, Definition},
    traits::Role,
};
use serde_json::{Value, json};

use super::summary::{Combination, Outcome, Summary};
use crate::{
    failure::Failure,
    report::table_formats::{self, digits, latex_head, latex_safe, markdown_safe, with_metrics},
    statistics::{Spread, signed},
    terminal::{columns, count},
};

/// Explanation below the tables.
const NOTE: &str = "Mean ± sample standard deviation over the repetitions. Differences are paired (same seed and class order) \
                    and have a 95 % confidence interval (Student's t distribution), which is wide for few repetitions.";

/// CSV with a row for each combination, network and metric, with all digits.
pub fn csv(summary: &Summary) -> Result<String, Failure> {
    let fixed = "network,definition,n,mean,deviation,pairs,difference,difference_deviation,difference_low,difference_high";
    let head = summary.vary.iter().cloned().chain(fixed.split(',').map(String::from)).collect();
    let mut rows: Vec<Vec<String>> = Vec::new();
    for (number, combination) in summary.combinations.iter().enumerate() {
        for role in summary.roles() {
            for definition in &DEFINITIONS {
                let difference = summary.difference(number, role, definition);
                let (low, high) = difference.and_then(|difference| difference.interval()).unzip();
                let spread = combination.spread(role, definition);
                let none = || ["0".into(), String::new(), String::new()];
                let mut row = combination.labels.clone();
                row.extend([role.as_str().into(), definition.name.into()]);
                row.extend(spread.map_or_else(none, |spread| spread.fields()));
                row.extend(difference.map(|difference| difference.fields()).unwrap_or_default());
                row.extend([low, high].map(digits));
                rows.push(row);
            }
        }
    }
    table_formats::csv("sweep.csv", head, rows)
}

/// JSON with all statistics and the values of every cell.
pub fn json(summary: &Summary) -> Result<String, Failure> {
    let named = |names: &[String], labels: &[String]| -> Value {
        names.iter().zip(labels).map(|(name, label)| (name.clone(), Value::from(label.clone()))).collect()
    };
    let cell = |cell: &Outcome| {
        let repetition = named(&summary.repeat, &cell.labels);
        json!({ "name": cell.name, "repetition": repetition, "done": cell.results.is_some() })
    };
    let combination = |(number, combination): (usize, &Combination)| {
        let mut value = json!({
            "values": named(&summary.vary, &combination.labels),
            "cells": combination.cells.iter().map(cell).collect::<Vec<_>>(),
        });
        for role in summary.roles() {
            for definition in &DEFINITIONS {
                let mut one = json!(combination.spread(role, definition));
                if one.is_object() {
                    one["values"] = json!(combination.values(role, definition));
                    let difference = summary.difference(number, role, definition);
                    one["difference"] = json!(difference);
                    if let Some((low, high)) = difference.and_then(|difference| difference.interval()) {
                        one["difference"]["interval_95"] = json!([low, high]);
                    }
                }
                value[role.as_str()][definition.name] = one;
            }
        }
        value
    };
    let all = json!({
        "varied": summary.vary,
        "repeated": summary.repeat,
        "baseline": summary.base().map(|base| named(&summary.vary, &base.labels)),
        "combinations": summary.combinations.iter().enumerate().map(combination).collect::<Vec<_>>(),
    });
    Ok(format!("{all:#}\n"))
}

/// Formats a mean and its deviation.
fn mean_text(spread: Option<Spread>) -> String {
    spread.map_or("–".into(), |spread| spread.text())
}

/// Formats a difference with its deviation and confidence interval.
fn difference_text(spread: Option<Spread>) -> String {
    spread.map_or("–".into(), |spread| {
        signed(spread.mean) + &spread.deviation_text() + &spread.interval_text()
    })
}

/// Table of the means of one network, or of its differences from the baseline.
struct Table {
    role: Role,
    /// Title of the baseline, if the table contains differences.
    from: Option<String>,
    /// Combination, number of values, and a cell for each metric.
    rows: Vec<Vec<String>>,
}

/// Tables of each network: the means, and the differences if there are several combinations.
fn tables(summary: &Summary) -> Vec<Table> {
    let mut tables = Vec::new();
    for role in summary.roles() {
        let (mut means, mut differences) = (Vec::new(), Vec::new());
        for (number, combination) in summary.combinations.iter().enumerate() {
            let row = |n: usize, cells: [String; DEFINITIONS.len()]| {
                [combination.title(), n.to_string()].into_iter().chain(cells).collect()
            };
            means.push(row(combination.done(), DEFINITIONS.map(|d| mean_text(combination.spread(role, &d)))));
            if number != summary.baseline {
                let spreads = DEFINITIONS.map(|definition| summary.difference(number, role, &definition));
                differences.push(row(spreads[0].map_or(0, |spread| spread.n), spreads.map(difference_text)));
            }
        }
        tables.push(Table { role, from: None, rows: means });
        if let Some(base) = summary.base().filter(|_| !differences.is_empty()) {
            tables.push(Table { role, from: Some(base.title()), rows: differences });
        }
    }
    tables
}

/// Markdown with tables of means and of differences for each network, and the definitions of the metrics.
pub fn markdown(summary: &Summary) -> String {
    let repeated = if summary.repeat.is_empty() { "none".into() } else { summary.repeat.join(" and ") };
    let mut text = format!(
        "# {}\n\n{} of {} done; repetitions: {repeated}.\n",
        markdown_safe(&summary.name),
        summary.done(),
        count(summary.cells(), "cell")
    );
    for Table { role, from, rows } in tables(summary) {
        let role = role.as_str();
        let (title, n) = match from {
            None => (format!("## {role}"), "n"),
            Some(base) => (format!("Difference of the {role} from {}:", markdown_safe(&base)), "pairs"),
        };
        let head = with_metrics(&[&summary.combination_title(), n]);
        text += &format!("\n{title}\n\n{}", table_formats::markdown(1, &head, &rows));
    }
    text + "\n" + NOTE + "\n\n" + &table_formats::markdown_definitions()
}

/// LaTeX with two tables for each network, and the definitions of the metrics in comments.
pub fn latex(summary: &Summary) -> String {
    let note = format!("% {}\n", NOTE.replace('±', "+-").replace('%', "percent"));
    let mut text = latex_head(&note);
    for Table { role, from, mut rows } in tables(summary) {
        let (title, n) = match from {
            None => (role.as_str().to_string(), "$n$"),
            Some(base) => (format!("{}, difference from {}", role.as_str(), latex_safe(&base)), "pairs"),
        };
        for cell in rows.iter_mut().flat_map(|row| &mut row[2..]) {
            *cell = if cell == "–" { "--".into() } else { format!("${}$", cell.replace('±', "\\pm")) };
        }
        let head = with_metrics(&[&summary.combination_title(), n]);
        text += &format!("\n% {title}\n{}", table_formats::latex(1, &head, &rows));
    }
    text
}

/// Table of the published metrics for the terminal.
pub fn text(summary: &Summary) -> String {
    let shown = &DEFINITIONS[..2];
    let several = summary.combinations.len() > 1;
    let mut head = vec![summary.combination_title(), "network".into(), "n".into()];
    head.extend(shown.iter().map(|d| d.title.to_string()));
    if let (Some(base), true) = (summary.base(), several) {
        let short_title = |d: &Definition| d.title.split(" (").next().unwrap_or(d.title);
        head.extend(shown.iter().map(|d| format!("{} minus {}", short_title(d), base.title())));
    }
    let mut rows = vec![head];
    for role in summary.roles() {
        for (number, combination) in summary.combinations.iter().enumerate() {
            let mut row = vec![combination.title(), role.as_str().into(), combination.done().to_string()];
            row.extend(shown.iter().map(|d| mean_text(combination.spread(role, d))));
            if several {
                row.extend(shown.iter().map(|d| difference_text(summary.difference(number, role, d))));
            }
            rows.push(row);
        }
    }
    columns(&rows)
}
