//! Batches of an exported network, as far as memory allows.

use cdl_core::{
    error::Error,
    run::export::{MAX_BATCH, Predictor},
};

use crate::failure::Failure;

/// Number of images in a batch: `asked` by `option` if they fit into memory; by default that of the run, or as many as fit.
pub fn batch_size(model: &Predictor, option: &str, asked: Option<usize>) -> Result<usize, Failure> {
    let (most, run) = (model.max_batch(), model.description().batch_size);
    match asked {
        Some(size) if (1..=most).contains(&size) => Ok(size),
        Some(size) => {
            let why = if most < MAX_BATCH { ", the images for which there is room here" } else { "" };
            let expected = format!("expected 1 to {most}{why}");
            let (origin, key) = ("command line".into(), option.into());
            Err(Error::Setting { origin, key, value: size.to_string(), expected }.into())
        }
        None if run > most => {
            tracing::warn!(
                "there is no room here for {run} images in a batch, as in the run: {most} are taken"
            );
            Ok(most)
        }
        None => Ok(run),
    }
}
