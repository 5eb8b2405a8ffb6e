//! `cdl compare`: compares results of runs with published ones.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::{
    compare::{comparison::compare_with, comparison_tables, own_results, published::Published},
    failure::Failure,
    terminal::emit,
};

/// Arguments of `cdl compare`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cdl compare runs/cifar100 --paper
  cdl compare sweeps/distillers --paper --format markdown

Each network of a run, or of each combination of a sweep, is compared with the rows of the published table for the same \
data set, networks, learner, distiller and number of tasks, in every version of the paper. All settings that differ are \
listed. A teacher is compared with the row of a single network. To compare runs with one another, use `cdl report`.")]
pub struct CompareArgs {
    /// Directories of runs or sweeps
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Compare with the published table (required; no other reference results are included)
    #[arg(long, required = true)]
    paper: bool,
    /// Output format
    #[arg(long, value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Aligned text
    Table,
    /// Markdown tables
    Markdown,
    /// CSV with a row for each published row
    Csv,
    /// JSON with all details
    Json,
}

/// Compares runs with the published table.
pub fn compare(args: &CompareArgs) -> Result<(), Failure> {
    let published = Published::read()?;
    let mut comparisons = Vec::new();
    for root in &args.runs {
        comparisons.extend(
            own_results::read(root, &published)?.into_iter().map(|own| compare_with(own, &published)),
        );
    }
    emit(&match args.format {
        Format::Table => comparison_tables::text(&comparisons, &published, false),
        Format::Markdown => comparison_tables::text(&comparisons, &published, true),
        Format::Csv => comparison_tables::csv(&comparisons)?,
        Format::Json => format!("{:#}\n", serde_json::json!(comparisons)),
    })
}
