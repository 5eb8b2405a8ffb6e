//! `cdl explain`.

use cdl_core::Config;

use crate::{ConfigArgs, Failure, emit};

/// Prints every value of a configuration and where it was set.
pub fn explain(args: &ConfigArgs) -> Result<(), Failure> {
    let config = Config::load(&args.config, &args.sets).map_err(Failure::before_writing)?;
    let rows = config.explain()?;
    let values: Vec<String> = rows.iter().map(|(key, value, _)| format!("{key} = {value}")).collect();
    let width = values.iter().map(String::len).max().unwrap_or(0);
    let lines =
        values.iter().zip(&rows).map(|(value, (_, _, origin))| format!("{value:width$}  # {origin}\n"));
    emit(&lines.collect::<String>())
}
