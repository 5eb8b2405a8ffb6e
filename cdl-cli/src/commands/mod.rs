//! Commands of the program, one file each.

pub mod bench;
pub mod check;
pub mod compare;
pub mod completions;
pub mod configs;
pub mod data;
pub mod describe;
pub mod dist;
pub mod eval;
pub mod explain;
pub mod export;
pub mod list;
pub mod plugin;
pub mod predict;
pub mod report;
pub mod resume;
pub mod run;
pub mod schema;
pub mod sweep;
