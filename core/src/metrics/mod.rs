//! Metrics of a run: accuracy, forgetting, confusion matrices, usage of prompts.

mod accuracy;
mod confusion;
mod csv_cells;
mod prompt_use;

pub use accuracy::{AccuracyMatrix, DEFINITIONS, Definition, Summary, accuracy_over_images};
pub use confusion::Confusion;
pub use csv_cells::escape_cell;
pub(crate) use prompt_use::PromptUseSums;
pub use prompt_use::{PoolUsage, PromptUsageTable};
