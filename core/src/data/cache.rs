//! Images that are kept in memory within a bound.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use image::RgbImage;

/// Test images, which every later task needs again, and in the room they leave training images, which the epochs of
/// one task need again.
///
/// Nothing makes room for an image of its own kind: where every image is used once a pass, that would keep none of
/// them until it is needed.
pub(super) struct Cache {
    /// Bytes of pixels that may be kept.
    room: usize,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    test_bytes: usize,
    train_bytes: usize,
    test: BTreeMap<usize, Arc<RgbImage>>,
    train: BTreeMap<usize, Arc<RgbImage>>,
}

impl Cache {
    pub(super) fn new(room: usize) -> Self {
        Self { room, kept: Mutex::default() }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Nothing that could panic happens under the lock.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn test(&self, index: usize) -> Option<Arc<RgbImage>> {
        self.kept().test.get(&index).cloned()
    }

    /// Keeps test image `index` if there is room; training images give way.
    pub(super) fn keep_test(&self, index: usize, image: &Arc<RgbImage>) {
        let mut kept = self.kept();
        if kept.test.contains_key(&index) || kept.test_bytes + image.len() > self.room {
            return;
        }
        while kept.test_bytes + kept.train_bytes + image.len() > self.room
            && let Some((_, image)) = kept.train.pop_last()
        {
            kept.train_bytes -= image.len();
        }
        kept.test_bytes += image.len();
        kept.test.insert(index, image.clone());
    }

    pub(super) fn train(&self, index: usize) -> Option<Arc<RgbImage>> {
        self.kept().train.get(&index).cloned()
    }

    /// Keeps training image `index` if there is room.
    pub(super) fn keep_train(&self, index: usize, image: &Arc<RgbImage>) {
        let mut kept = self.kept();
        let bytes = kept.test_bytes + kept.train_bytes + image.len();
        if bytes <= self.room && !kept.train.contains_key(&index) {
            kept.train_bytes += image.len();
            kept.train.insert(index, image.clone());
        }
    }

    /// Lets go of training images that are not among `needed`.
    pub(super) fn retain_train(&self, needed: &BTreeSet<usize>) {
        let mut kept = self.kept();
        kept.train.retain(|index, _| needed.contains(index));
        kept.train_bytes = kept.train.values().map(|image| image.len()).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 12 bytes.
    fn image() -> Arc<RgbImage> {
        Arc::new(RgbImage::new(2, 2))
    }

    fn kept(cache: &Cache) -> (Vec<usize>, Vec<usize>, usize) {
        let kept = cache.kept();
        let train_bytes: usize = kept.train.values().map(|image| image.len()).sum();
        assert_eq!(kept.train_bytes, train_bytes);
        (
            kept.test.keys().copied().collect(),
            kept.train.keys().copied().collect(),
            kept.test_bytes + train_bytes,
        )
    }

    #[test]
    fn the_bound_is_kept_and_test_images_come_first() {
        let cache = Cache::new(40);
        for index in 0..5 {
            cache.keep_train(index, &image());
        }
        assert_eq!(kept(&cache), (vec![], vec![0, 1, 2], 36));
        cache.keep_test(7, &image());
        assert_eq!(kept(&cache), (vec![7], vec![0, 1], 36));
        cache.retain_train(&BTreeSet::from([1, 4]));
        assert_eq!(kept(&cache), (vec![7], vec![1], 24));
        for index in 8..12 {
            cache.keep_test(index, &image());
            cache.keep_test(index, &image());
        }
        assert_eq!(kept(&cache), (vec![7, 8, 9], vec![], 36));
        assert!(cache.test(8).is_some() && cache.test(10).is_none() && cache.train(1).is_none());
    }

    #[test]
    fn an_image_that_can_never_fit_drives_nothing_out() {
        let cache = Cache::new(15);
        cache.keep_train(0, &image());
        cache.keep_test(0, &Arc::new(RgbImage::new(3, 2)));
        assert_eq!(kept(&cache), (vec![], vec![0], 12));
        let none = Cache::new(0);
        none.keep_train(0, &image());
        none.keep_test(0, &image());
        assert_eq!(kept(&none), (vec![], vec![], 0));
    }
}
