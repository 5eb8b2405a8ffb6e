//! Distillation methods.

pub mod kd;
pub mod kd_prompts;
pub mod none;
