//! Reports of runs: an HTML page that works offline, figures and tables.

pub mod accuracy_section;
pub mod configuration;
mod configuration_series;
mod confusion_section;
pub mod cost_section;
mod fonts;
pub mod html;
mod loss_section;
pub mod metrics_table;
pub mod pdf;
pub mod plot;
mod prompt_section;
pub mod raster;
pub mod recorded_run;
pub mod report_page;
pub mod report_tables;
mod run_setup;
mod settings_section;
mod summary_section;
pub mod table_formats;
