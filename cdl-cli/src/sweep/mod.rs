//! Sweeps: grids of runs, each cell in its own process, and statistics of their results.

pub mod axis;
pub mod cell_check;
pub mod cell_process;
pub mod cell_states;
pub mod grid;
pub mod layout;
pub mod plan;
pub mod pool;
pub mod slurm;
pub mod summary;
pub mod sweep_page;
pub mod sweep_tables;
