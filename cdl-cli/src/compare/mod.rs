//! Comparisons of runs and sweeps with the published results.

pub mod comparison;
pub mod comparison_tables;
pub mod own_results;
pub mod published;
