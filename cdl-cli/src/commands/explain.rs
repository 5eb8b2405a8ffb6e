//! `cdl explain`.

use crate::{config_args::ConfigArgs, failure::Failure, terminal::emit};

/// Prints every value of a configuration and where it was set.
pub fn explain(args: &ConfigArgs) -> Result<(), Failure> {
    let rows = args.load()?.explain()?;
    let values: Vec<String> = rows.iter().map(|(key, value, _)| format!("{key} = {value}")).collect();
    let width = values.iter().map(String::len).max().unwrap_or(0);
    let lines =
        values.iter().zip(&rows).map(|(value, (_, _, origin))| format!("{value:width$}  # {origin}\n"));
    emit(&lines.collect::<String>())
}
