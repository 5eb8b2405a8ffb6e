//! One image set as the networks see it: decoded, transformed, kept in memory where there is room.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use image::RgbImage;

use crate::{
    data::{
        ImageSet, OnError,
        cache::{Cache, TestImage},
    },
    error::{Error, Result},
    rng::Rng,
    system::panics,
    transform::TransformConfig,
};

/// Images of one split, with the numbers of those that could not be read.
pub(super) struct Source {
    set: Arc<dyn ImageSet>,
    transform: TransformConfig,
    cache: Arc<Cache>,
    on_error: OnError,
    damaged: Mutex<BTreeSet<usize>>,
}

impl Source {
    pub(super) fn new(
        set: Arc<dyn ImageSet>,
        transform: TransformConfig,
        cache: Arc<Cache>,
        on_error: OnError,
    ) -> Self {
        Self { set, transform, cache, on_error, damaged: Mutex::default() }
    }

    pub(super) fn set(&self) -> &dyn ImageSet {
        self.set.as_ref()
    }

    pub(super) fn transform(&self) -> &TransformConfig {
        &self.transform
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

    /// Image `index` as a test image.
    pub(super) fn test_square(&self, index: usize) -> Result<Arc<RgbImage>> {
        match self.cache.test(index) {
            Some(TestImage::Square(square)) => Ok(square),
            Some(TestImage::Decoded(image)) => Ok(Arc::new(self.transform.test(&image))),
            None => {
                let image = self.decode(index)?;
                let square = Arc::new(self.transform.test(&image));
                if square.len() < image.len() || (square.len() == image.len() && !self.set.in_memory()) {
                    self.cache.keep_test(index, TestImage::Square(square.clone()));
                } else if !self.set.in_memory() {
                    self.cache.keep_test(index, TestImage::Decoded(Arc::new(image)));
                }
                Ok(square)
            }
        }
    }

    /// What becomes of `error`, met at image `index`: it is returned, or the image is left out with a warning.
    ///
    /// # Errors
    /// `error`, unless such images are skipped.
    pub(super) fn leave_out(&self, index: usize, error: Error) -> Result<()> {
        if self.on_error == OnError::Stop {
            return Err(error);
        }
        if self.damaged().insert(index) {
            tracing::warn!("left out: {error}");
        }
        Ok(())
    }

    /// Whether unreadable images are left out.
    pub(super) fn skips(&self) -> bool {
        self.on_error == OnError::Skip
    }

    /// Numbers of the images that were left out.
    pub(super) fn damaged(&self) -> MutexGuard<'_, BTreeSet<usize>> {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
