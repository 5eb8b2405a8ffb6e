//! One image set as the networks see it: decoded, transformed, kept in memory where there is room.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use image::RgbImage;
use rayon::prelude::*;

use crate::{
    data::{ImageSet, OnError, TaskSettings, cache::Cache, image_stream::Member},
    error::{Error, Result},
    rng::Rng,
    system::panics,
    traits::Inspection,
    transform::TransformConfig,
};

/// Images of one split, with the numbers of those that could not be read.
pub(super) struct Source {
    pub(super) set: Arc<dyn ImageSet>,
    pub(super) transform: TransformConfig,
    cache: Arc<Cache>,
    on_error: OnError,
    damaged: Mutex<BTreeSet<usize>>,
}

impl Source {
    pub(super) fn new(set: Arc<dyn ImageSet>, settings: &TaskSettings, cache: Arc<Cache>) -> Self {
        let (transform, on_error) = (settings.transform.clone(), settings.input.on_error);
        Self { set, transform, cache, on_error, damaged: Mutex::default() }
    }

    /// Side of a square in pixels.
    pub(super) fn side(&self) -> usize {
        self.transform.image_size
    }

    /// Decodes image `index`. A reader that panics has met a file that it cannot read.
    pub(super) fn decode(&self, index: usize) -> Result<RgbImage> {
        panics::catch(|| self.set.image(index)).unwrap_or_else(|said| {
            let reason = format!("reading it panicked: {said}");
            Err(Error::Data { file: self.set.id(index).into(), reason })
        })
    }

    /// Image `index` as a training image, augmented by `rng`.
    pub(super) fn train_square(&self, index: usize, rng: &mut Rng) -> Result<Arc<RgbImage>> {
        let image = match self.cache.train(index) {
            Some(image) => image,
            None => Arc::new(self.decode(index)?),
        };
        if !self.set.in_memory() {
            self.cache.keep_train(index, &image);
        }
        Ok(Arc::new(self.transform.train(&image, rng)))
    }

    /// Image `index` as a test image. Of the decoded image and the square, the smaller one is kept.
    pub(super) fn test_square(&self, index: usize) -> Result<Arc<RgbImage>> {
        let image = match self.cache.test(index) {
            Some(square) if square.len() == 3 * self.side() * self.side() => return Ok(square),
            Some(image) => image,
            None => Arc::new(self.decode(index)?),
        };
        let square = Arc::new(self.transform.test(&image));
        if square.len() < image.len() || !self.set.in_memory() {
            self.cache.keep_test(index, if square.len() <= image.len() { &square } else { &image });
        }
        Ok(square)
    }

    /// Decodes `most` of the images: the first, the last, and others drawn by a fixed seed. `seen` is told of each.
    pub(super) fn inspect(&self, members: &[Member], most: usize, seen: &(dyn Fn() + Sync)) -> Inspection {
        let mut chosen: Vec<usize> = (0..members.len()).collect();
        if most < chosen.len() {
            // The last one first, so that of two images these two are taken.
            let last = members.len() - 1;
            chosen.swap(last.min(1), last);
            if let Some(others) = chosen.get_mut(2..) {
                Rng::new(0).derive("inspect").shuffle(others);
            }
            chosen.truncate(most);
            chosen.sort_unstable();
        }
        let look = |at: usize| {
            let found = self.decode(members[at].0).err();
            seen();
            found
        };
        let looked_at = chosen.len();
        let found: Vec<Option<Error>> = chosen.into_par_iter().map(look).collect();
        Inspection { looked_at, damaged: found.into_iter().flatten().collect() }
    }

    /// What becomes of `error`, met at image `index`: it is returned, or the image is left out with a warning.
    pub(super) fn leave_out(&self, index: usize, error: Error) -> Result<()> {
        if self.on_error == OnError::Stop {
            return Err(error);
        }
        if self.damaged().insert(index) {
            tracing::warn!("left out: {error}");
        }
        Ok(())
    }

    /// Numbers of the images that were left out.
    pub(super) fn damaged(&self) -> MutexGuard<'_, BTreeSet<usize>> {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
