//! Reports of runs: an HTML page that works offline, figures and tables.

pub mod accuracy_section;
mod confusion_section;
pub mod cost_section;
pub mod html;
mod loss_section;
pub mod plot;
mod prompt_section;
pub mod raster;
pub mod recorded_run;
pub mod report_page;
pub mod report_tables;
mod run_series;
pub mod table_formats;
