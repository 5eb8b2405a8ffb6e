//! Commands, one file each; `compare` and `report` lie beside what they are made of.

pub mod bench;
pub mod check;
pub mod data;
pub mod describe;
pub mod dist;
pub mod eval;
pub mod explain;
pub mod export;
pub mod list;
pub mod plugin;
pub mod predict;
pub mod resume;
pub mod run;
pub mod sweep;
