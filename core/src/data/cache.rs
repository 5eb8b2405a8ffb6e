//! Cache of images in memory, with a bounded size.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use image::RgbImage;

/// Cache of test images, which every later task needs again, and of training images, which every epoch of a task needs
/// again. Test images have priority.
///
/// No image is evicted for another of its kind: every image is used once per pass, so that eviction would remove each
/// image before it is needed again.
pub(super) struct ImageCache {
    /// Capacity in bytes of pixels.
    capacity: usize,
    cached: Mutex<CachedImages>,
}

#[derive(Default)]
struct CachedImages {
    test_bytes: usize,
    train_bytes: usize,
    test: BTreeMap<usize, Arc<RgbImage>>,
    train: BTreeMap<usize, Arc<RgbImage>>,
}

impl ImageCache {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, cached: Mutex::default() }
    }

    fn cached(&self) -> MutexGuard<'_, CachedImages> {
        // No code under the lock can panic, so a poisoned lock is consistent.
        self.cached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn test(&self, index: usize) -> Option<Arc<RgbImage>> {
        self.cached().test.get(&index).cloned()
    }

    /// Adds test image `index` if it fits, evicting training images if necessary.
    pub(super) fn keep_test(&self, index: usize, image: &Arc<RgbImage>) {
        let mut cached = self.cached();
        if cached.test.contains_key(&index) || cached.test_bytes + image.len() > self.capacity {
            return;
        }
        while cached.test_bytes + cached.train_bytes + image.len() > self.capacity
            && let Some((_, image)) = cached.train.pop_last()
        {
            cached.train_bytes -= image.len();
        }
        cached.test_bytes += image.len();
        cached.test.insert(index, image.clone());
    }

    pub(super) fn train(&self, index: usize) -> Option<Arc<RgbImage>> {
        self.cached().train.get(&index).cloned()
    }

    /// Adds training image `index` if it fits.
    pub(super) fn keep_train(&self, index: usize, image: &Arc<RgbImage>) {
        let mut cached = self.cached();
        let bytes = cached.test_bytes + cached.train_bytes + image.len();
        if bytes <= self.capacity && !cached.train.contains_key(&index) {
            cached.train_bytes += image.len();
            cached.train.insert(index, image.clone());
        }
    }

    /// Removes the training images that are not in `needed`.
    pub(super) fn retain_train(&self, needed: &BTreeSet<usize>) {
        let mut cached = self.cached();
        cached.train.retain(|index, _| needed.contains(index));
        cached.train_bytes = cached.train.values().map(|image| image.len()).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Image of 12 bytes.
    fn image() -> Arc<RgbImage> {
        Arc::new(RgbImage::new(2, 2))
    }

    /// Test images, training images and bytes in the cache.
    fn contents(cache: &ImageCache) -> (Vec<usize>, Vec<usize>, usize) {
        let cached = cache.cached();
        let train_bytes: usize = cached.train.values().map(|image| image.len()).sum();
        assert_eq!(cached.train_bytes, train_bytes);
        (
            cached.test.keys().copied().collect(),
            cached.train.keys().copied().collect(),
            cached.test_bytes + train_bytes,
        )
    }

    #[test]
    fn the_capacity_is_not_exceeded_and_test_images_have_priority() {
        let cache = ImageCache::new(40);
        for index in 0..5 {
            cache.keep_train(index, &image());
        }
        assert_eq!(contents(&cache), (vec![], vec![0, 1, 2], 36));
        cache.keep_test(7, &image());
        assert_eq!(contents(&cache), (vec![7], vec![0, 1], 36));
        cache.retain_train(&BTreeSet::from([1, 4]));
        assert_eq!(contents(&cache), (vec![7], vec![1], 24));
        for index in 8..12 {
            cache.keep_test(index, &image());
            cache.keep_test(index, &image());
        }
        assert_eq!(contents(&cache), (vec![7, 8, 9], vec![], 36));
        assert!(cache.test(8).is_some() && cache.test(10).is_none() && cache.train(1).is_none());
    }

    #[test]
    fn an_image_larger_than_the_cache_evicts_nothing() {
        let cache = ImageCache::new(15);
        cache.keep_train(0, &image());
        cache.keep_test(0, &Arc::new(RgbImage::new(3, 2)));
        assert_eq!(contents(&cache), (vec![], vec![0], 12));
        let none = ImageCache::new(0);
        none.keep_train(0, &image());
        none.keep_test(0, &image());
        assert_eq!(contents(&none), (vec![], vec![], 0));
    }
}
