//! Distillers: distillation methods.

pub mod dkd;
pub mod fitnets;
pub mod kd;
pub mod kd_prompts;
pub mod none;
pub mod review_kd;
