//! `cdl explain`.

use clap::Args;
use serde_json::{Value, json};

use crate::{
    config_args::ConfigArgs,
    failure::Failure,
    terminal::{emit, emit_json},
};

/// Columns of a terminal that are there wherever the program runs.
const COLUMNS: usize = 80;
/// Columns for a value that has its origin beside it.
const VALUE: usize = 40;

/// Arguments of `cdl explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// JSON instead of text
    #[arg(long)]
    json: bool,
}

/// Prints every value of a configuration and where it was set.
pub fn explain(args: &ExplainArgs) -> Result<(), Failure> {
    let rows = args.config.load()?.explain()?;
    if args.json {
        let rows = rows
            .iter()
            .map(|(key, value, origin)| json!({ "key": key, "value": as_json(value), "origin": origin }));
        return emit_json(&rows.collect::<Vec<Value>>());
    }
    let lines = rows.iter().map(|(key, value, origin)| {
        let setting = format!("{key} = {value}");
        // A long origin moves to the left, one that is longer still to a line of its own.
        let room = COLUMNS.saturating_sub("  # ".len() + origin.chars().count());
        let width = room.min(VALUE);
        match setting.chars().count() <= room {
            true => format!("{setting:width$}  # {origin}\n"),
            false => format!("{setting}\n    # {origin}\n"),
        }
    });
    emit(&lines.collect::<String>())
}

/// A value of TOML as JSON.
fn as_json(value: &str) -> Value {
    let table: Option<toml::Table> = toml::from_str(&format!("value = {value}")).ok();
    let value = table.and_then(|mut table| table.remove("value"));
    value.and_then(|value| serde_json::to_value(value).ok()).unwrap_or_default()
}
