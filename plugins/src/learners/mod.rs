//! Learners: prompt methods with their classification heads.

pub mod apt;
pub mod coda_prompt;
pub mod dual_prompt;
pub mod l2p;
pub mod linear;
