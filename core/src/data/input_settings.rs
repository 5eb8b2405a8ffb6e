//! Settings of image input: threads, cache, prefetching, and the treatment of unreadable images.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Maximum number of threads that prepare images.
const MAX_WORKERS: usize = 256;
/// Maximum number of prefetched batches.
const MAX_PREFETCH: usize = 1_000;

/// Threads, memory and damaged images. Only `on_error = "skip"` can change the input of the networks: it skips
/// unreadable images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct InputSettings {
    /// Additional threads that decode, crop and resize images while the networks compute. With 0, the computing threads
    /// prepare each batch when it is needed.
    pub workers: usize,
    /// Batches that the workers prepare ahead, at least 1. Each image takes `image_size` x `image_size` x 3 bytes.
    pub prefetch: usize,
    /// Size of the image cache in megabytes. Test images have priority: each is decoded once per run, and the
    /// transformed image is cached, or the decoded image if it is smaller. Decoded training images of the current task
    /// are cached too. 0: no cache.
    pub cache_mb: usize,
    /// `stop`: an unreadable image ends the run. `skip`: the image is skipped with a warning that names it, and the
    /// next image of the epoch takes its place; `results.json` contains the number of skipped images.
    pub on_error: OnError,
}

/// Treatment of an unreadable image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// The run ends with an error that names the image.
    #[default]
    Stop,
    /// The image is skipped.
    Skip,
}

impl Default for InputSettings {
    fn default() -> Self {
        Self { workers: 1, prefetch: 2, cache_mb: 1_024, on_error: OnError::Stop }
    }
}

impl InputSettings {
    /// Checks the ranges of all values. The error names the first invalid key.
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
