//! Decoded, transformed and cached images of one image set.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use image::RgbImage;
use rayon::prelude::*;

use crate::{
    data::{ImageSet, OnError, TaskSettings, cache::ImageCache, image_stream::Member},
    error::{Error, Result},
    rng::Rng,
    system::panics,
    traits::Inspection,
    transform::TransformConfig,
};

/// Images of one split, with the indices of those that could not be read.
pub(super) struct ImageSource {
    pub(super) set: Arc<dyn ImageSet>,
    pub(super) transform: TransformConfig,
    cache: Arc<ImageCache>,
    on_error: OnError,
    damaged: Mutex<BTreeSet<usize>>,
}

impl ImageSource {
    pub(super) fn new(set: Arc<dyn ImageSet>, settings: &TaskSettings, cache: Arc<ImageCache>) -> Self {
        let (transform, on_error) = (settings.transform.clone(), settings.input.on_error);
        Self { set, transform, cache, on_error, damaged: Mutex::default() }
    }

    /// Returns the side of a transformed image in pixels.
    pub(super) fn side(&self) -> usize {
        self.transform.image_size
    }

    /// Decodes image `index`. A panic of the reader counts as an unreadable image.
    pub(super) fn decode(&self, index: usize) -> Result<RgbImage> {
        panics::catch(|| self.set.image(index)).unwrap_or_else(|message| {
            let reason = format!("the image reader panicked: {message}");
            Err(Error::Data { file: self.set.id(index).into(), reason })
        })
    }

    /// Returns image `index` transformed for training, with augmentation drawn from `rng`.
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

    /// Returns image `index` transformed for testing. The smaller one of decoded and transformed image is cached.
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

    /// Decodes at most `limit` images: the first, the last, and others drawn with a fixed seed. Calls `progress` after
    /// each image.
    pub(super) fn inspect(
        &self,
        members: &[Member],
        limit: usize,
        progress: &(dyn Fn() + Sync),
    ) -> Inspection {
        let mut chosen: Vec<usize> = (0..members.len()).collect();
        if limit < chosen.len() {
            // The last image moves to the second place, so that a limit of 2 selects the first and the last.
            let last = members.len() - 1;
            chosen.swap(last.min(1), last);
            if let Some(others) = chosen.get_mut(2..) {
                Rng::new(0).derive("inspect").shuffle(others);
            }
            chosen.truncate(limit);
            chosen.sort_unstable();
        }
        let check = |at: usize| {
            let error = self.decode(members[at].0).err();
            progress();
            error
        };
        let checked = chosen.len();
        let errors: Vec<Option<Error>> = chosen.into_par_iter().map(check).collect();
        Inspection { checked, damaged: errors.into_iter().flatten().collect() }
    }

    /// Handles the error of image `index` according to `on_error`: returns it, or skips the image with a warning.
    pub(super) fn skip_image(&self, index: usize, error: Error) -> Result<()> {
        if self.on_error == OnError::Stop {
            let Error::Data { file, reason } = error else { return Err(error) };
            let remedy = "remove the file, or set `stream.input.on_error = \"skip\"`";
            return Err(Error::data(file, format!("{reason}; {remedy}")));
        }
        if self.damaged().insert(index) {
            tracing::warn!("skipping an unreadable image: {error}");
        }
        Ok(())
    }

    /// Returns the indices of the skipped images.
    pub(super) fn damaged(&self) -> MutexGuard<'_, BTreeSet<usize>> {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
