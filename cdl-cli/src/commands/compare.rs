//! `cdl compare`: results of runs beside published ones.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::{
    compare::{comparison::beside, comparison_tables, own_results, published::Published},
    failure::Failure,
    terminal::emit,
};

/// Arguments of `cdl compare`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cdl compare runs/cifar100 --paper
  cdl compare sweeps/distillers --paper --format markdown

Each network of a run, or of each combination of a sweep, stands beside the rows of the published table that are about
the same data set, networks, learner, distiller and number of tasks, in every version of the paper, with everything that
differs in the settings. A teacher is compared with the row of a single network. Runs side by side: `cdl report`.")]
pub struct CompareArgs {
    /// Directories of runs or sweeps
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// With the published results, the only ones that this program carries
    #[arg(long, required = true)]
    paper: bool,
    /// How it is written
    #[arg(long, value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For the terminal
    Table,
    /// For a page
    Markdown,
    /// A line for each published row
    Csv,
    /// All of it
    Json,
}

/// Compares runs with the published table.
pub fn compare(args: &CompareArgs) -> Result<(), Failure> {
    let published = Published::read()?;
    let mut comparisons = Vec::new();
    for root in &args.runs {
        comparisons
            .extend(own_results::read(root, &published)?.into_iter().map(|ours| beside(ours, &published)));
    }
    emit(&match args.format {
        Format::Table => comparison_tables::people(&comparisons, &published, false),
        Format::Markdown => comparison_tables::people(&comparisons, &published, true),
        Format::Csv => comparison_tables::csv(&comparisons)?,
        Format::Json => format!("{:#}\n", serde_json::json!(comparisons)),
    })
}
