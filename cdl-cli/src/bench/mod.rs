//! Measurements of `cdl bench`.

pub mod inference_times;
pub mod input_rates;
pub mod profile;
pub mod step_times;
