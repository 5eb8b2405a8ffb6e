//! How images get from their files to the networks: by how many threads, what is kept in memory, and what happens to
//! images that cannot be read.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Most threads that may prepare images.
const MAX_WORKERS: usize = 256;
/// Most batches that may be prepared ahead.
const MAX_PREFETCH: usize = 1_000;

/// Threads, memory and damaged images. None of these values changes what the networks see, but for
/// `on_error = "skip"`, which leaves out what cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct InputSettings {
    /// Threads of their own that decode, crop and resize images while the networks compute. With 0 the computing
    /// threads do it, when a batch is asked for.
    pub workers: usize,
    /// Batches that the workers prepare ahead, at least 1. Each image of them takes `image_size` x `image_size` x 3
    /// bytes.
    pub prefetch: usize,
    /// Megabytes for images that are kept: first the test images, each decoded once a run and kept as the network
    /// sees it (or as decoded, where that is smaller), then training images of the task that is learned, as decoded.
    /// 0: none is kept.
    pub cache_mb: usize,
    /// `stop`: an image that cannot be read ends the run. `skip`: it is left out, with a warning that names it, and
    /// the next image of the epoch moves up; `results.json` has their number.
    pub on_error: OnError,
}

/// What happens when an image cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// The run ends with the image's name.
    #[default]
    Stop,
    /// The image is left out.
    Skip,
}

impl Default for InputSettings {
    fn default() -> Self {
        Self { workers: 1, prefetch: 2, cache_mb: 1_024, on_error: OnError::Stop }
    }
}

impl InputSettings {
    /// Refuses the first value out of range, by its key.
    pub fn validate(&self) -> Result<()> {
        if self.workers > MAX_WORKERS {
            let expected = format!("expected 0 to {MAX_WORKERS} threads");
            return Err(Error::setting("input.workers", self.workers, expected));
        }
        if !(1..=MAX_PREFETCH).contains(&self.prefetch) {
            let expected = format!("expected 1 to {MAX_PREFETCH} batches");
            return Err(Error::setting("input.prefetch", self.prefetch, expected));
        }
        Ok(())
    }
}
