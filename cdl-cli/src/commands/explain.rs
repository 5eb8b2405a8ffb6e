//! `cdl explain`: every value of a configuration and its origin.

use clap::Args;
use serde_json::{Value, json};

use crate::{
    config_args::ConfigArgs,
    failure::Failure,
    terminal::{emit, emit_json},
};

/// Width of the output: the smallest common width of terminals.
const COLUMNS: usize = 80;
/// Column in which origins begin, unless they are too long for the rest of the line.
const ORIGIN_COLUMN: usize = 40;

/// Arguments of `cdl explain`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  cdl explain configs/quickstart.toml --set optimizer.lr=1e-3")]
pub struct ExplainArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

/// Prints every value of a configuration and its origin.
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
        // Long origins begin further left; those that still do not fit get their own line.
        let room = COLUMNS.saturating_sub("  # ".len() + origin.chars().count());
        let width = room.min(ORIGIN_COLUMN);
        match setting.chars().count() <= room {
            true => format!("{setting:width$}  # {origin}\n"),
            false => format!("{setting}\n    # {origin}\n"),
        }
    });
    emit(&lines.collect::<String>())
}

/// Converts a TOML value to JSON.
fn as_json(value: &str) -> Value {
    let table: Option<toml::Table> = toml::from_str(&format!("value = {value}")).ok();
    let value = table.and_then(|mut table| table.remove("value"));
    value.and_then(|value| serde_json::to_value(value).ok()).unwrap_or_default()
}
