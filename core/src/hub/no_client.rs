//! The hub in a build without its client: every repository is refused, with what to do.

use crate::{
    error::{HubError, Result},
    hub::{WeightFiles, dataset::DataFile},
};

/// Refuses a model repository.
pub(super) fn weights(wanted: String, _repo: &str, _revision: &str) -> Result<WeightFiles, HubError> {
    Err(HubError::NoClient { wanted })
}

/// Refuses a data set repository.
pub(super) fn dataset(
    wanted: String,
    _repo: &str,
    _revision: &str,
    _choose: impl Fn(&[String]) -> Result<Vec<String>>,
    _seen: &dyn Fn(),
) -> Result<Vec<DataFile>> {
    Err(HubError::NoClient { wanted }.into())
}
