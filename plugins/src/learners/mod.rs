//! Prompt methods.

pub mod coda_prompt;
