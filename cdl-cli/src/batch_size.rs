//! Batch sizes for exported networks, limited by free memory.

use cdl_core::{
    error::Error,
    run::export::{MAX_BATCH, Predictor},
};

use crate::failure::Failure;

/// Returns the batch size: the value `requested` by `option`, or the run's batch size, reduced to fit into memory.
///
/// # Errors
/// Fails if the requested batch does not fit into memory.
pub fn batch_size(model: &Predictor, option: &str, requested: Option<usize>) -> Result<usize, Failure> {
    let (limit, run) = (model.max_batch(), model.description().batch_size);
    match requested {
        Some(size) if (1..=limit).contains(&size) => Ok(size),
        Some(size) => {
            let reason = if limit < MAX_BATCH { " (limited by free memory)" } else { "" };
            let expected = format!("expected 1 to {limit}{reason}");
            let (origin, key) = ("command line".into(), option.into());
            Err(Error::Setting { origin, key, value: size.to_string(), expected }.into())
        }
        None if run > limit => {
            tracing::warn!("not enough free memory for the run's batch size of {run}; using {limit}");
            Ok(limit)
        }
        None => Ok(run),
    }
}
