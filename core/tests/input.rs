//! Tests of batches of images: contents do not depend on threads, cache or prefetching; damaged images are reported or
//! skipped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use candle_core::Device;
use cdl_core::{
    data::{ImageSet, ImageStream, InputSettings, OnError, TaskSettings},
    error::{Error, Result},
    rng::Rng,
    traits::{Batch, EpochKey, ImageFiles, Mode, Role, Skipped, StreamContext, TaskStream},
    transform::TransformConfig,
};
use image::{Rgb, RgbImage};

const CLASSES: usize = 4;
const TASKS: usize = 2;
const SIDE: usize = 8;

/// Behaviour of the reader of a damaged image.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Damage {
    Error,
    Panic,
}

/// Images of different shapes and contents that count how often each is decoded.
#[derive(Clone)]
struct Images {
    decoded: Arc<Vec<AtomicUsize>>,
    damaged: BTreeMap<usize, Damage>,
}

impl Images {
    fn new(count: usize) -> Self {
        Self {
            decoded: Arc::new((0..count).map(|_| AtomicUsize::new(0)).collect()),
            damaged: BTreeMap::new(),
        }
    }

    fn damaged(self, images: &[usize], damage: Damage) -> Self {
        Self { damaged: images.iter().map(|&image| (image, damage)).collect(), ..self }
    }

    /// Returns the number of times that each image was decoded.
    fn counts(&self) -> Vec<usize> {
        self.decoded.iter().map(|count| count.load(Ordering::SeqCst)).collect()
    }

    fn total(&self) -> usize {
        self.counts().iter().sum()
    }
}

impl ImageSet for Images {
    fn len(&self) -> usize {
        self.decoded.len()
    }

    fn label(&self, index: usize) -> usize {
        index % CLASSES
    }

    fn image(&self, index: usize) -> Result<RgbImage> {
        self.decoded[index].fetch_add(1, Ordering::SeqCst);
        match self.damaged.get(&index) {
            Some(Damage::Error) => {
                Err(Error::Data { file: self.id(index).into(), reason: "is damaged".into() })
            }
            Some(Damage::Panic) => panic!("cannot decode {}", self.id(index)),
            None => {
                let (width, height) = (9 + index as u32 % 5, 9 + index as u32 % 3);
                Ok(RgbImage::from_fn(width, height, |x, y| {
                    Rgb([index as u8, (x * 20) as u8, (y * 20 + x) as u8])
                }))
            }
        }
    }

    fn id(&self, index: usize) -> String {
        format!("{index}.png")
    }
}

fn stream(train: &Images, test: &Images, input: InputSettings) -> ImageStream {
    let settings = TaskSettings {
        tasks: Some(TASKS),
        memory: 6,
        transform: TransformConfig { image_size: SIDE, ..Default::default() },
        input,
        ..Default::default()
    };
    let context = StreamContext { mode: Mode::Published, device: &Device::Cpu, rng: Rng::new(1) };
    let classes = (0..CLASSES).map(|class| class.to_string()).collect();
    ImageStream::new("test", classes, Box::new(train.clone()), Box::new(test.clone()), &settings, &context)
        .unwrap()
}

fn key(task: usize, epoch: usize) -> EpochKey {
    EpochKey { task, role: Role::Student, epoch }
}

/// Pixels and labels of a batch.
type Numbers = (Vec<f32>, Vec<u32>);

fn numbers(batch: &Batch) -> Numbers {
    let pixels = batch.pixels.flatten_all().unwrap().to_vec1().unwrap();
    (pixels, batch.labels.to_vec1().unwrap())
}

/// Returns all training and test batches of two tasks with two epochs each.
fn all_batches(stream: &ImageStream) -> Vec<Result<Numbers, String>> {
    let mut all = Vec::new();
    let mut take = |batch: Result<Batch>| all.push(batch.map(|b| numbers(&b)).map_err(|e| e.to_string()));
    for task in 0..TASKS {
        for epoch in 0..2 {
            stream.train_batches(key(task, epoch), 5, 0).for_each(&mut take);
        }
        for seen in 0..=task {
            stream.test_batches(seen, 5).for_each(&mut take);
        }
    }
    all
}

fn settings(workers: usize, cache_mb: usize, on_error: OnError) -> InputSettings {
    InputSettings { workers, cache_mb, on_error, ..Default::default() }
}

#[test]
fn batches_do_not_depend_on_threads_cache_or_prefetching() {
    let damaged = || Images::new(48).damaged(&[3, 9, 16, 17, 33], Damage::Error);
    for (images, on_error) in [
        (Images::new(48), OnError::Stop),
        (damaged(), OnError::Skip),
        (damaged(), OnError::Stop),
        (Images::new(48).damaged(&[5, 12, 30], Damage::Panic), OnError::Skip),
    ] {
        let reference = all_batches(&stream(&images, &images, settings(0, 0, on_error)));
        assert!(reference.len() > 12);
        assert_eq!(
            reference.iter().any(Result::is_err),
            on_error == OnError::Stop && !images.damaged.is_empty()
        );
        for workers in [0, 1, 2, 5] {
            for cache_mb in [0, 1] {
                for prefetch in [1, 4] {
                    let input = InputSettings { prefetch, ..settings(workers, cache_mb, on_error) };
                    let seen = all_batches(&stream(&images, &images, input.clone()));
                    assert!(seen == reference, "{input:?}");
                }
            }
        }
    }
}

#[test]
fn batches_do_not_depend_on_when_damage_is_found() {
    let images = Images::new(48).damaged(&[3, 9, 16, 17, 33], Damage::Error);
    let late = stream(&images, &images, settings(2, 1, OnError::Skip));
    let early = stream(&images, &images, settings(2, 1, OnError::Skip));
    early.verify().unwrap();
    assert_eq!(early.skipped_images().count(), Skipped { train: 5, test: 5 });
    assert_eq!(late.skipped_images().count(), Skipped::default());
    assert!(all_batches(&early) == all_batches(&late));
    assert_eq!(late.skipped_images().count(), early.skipped_images().count());
}

/// A resumed run gets the same batches from any position of an epoch and skips the same images, without decoding
/// earlier batches.
#[test]
fn a_pass_can_start_at_any_batch_if_the_skipped_images_are_known() {
    for images in [Images::new(48), Images::new(48).damaged(&[0, 1, 5, 9, 16, 21, 33, 44], Damage::Error)] {
        for workers in [0, 2] {
            let input = settings(workers, 0, OnError::Skip);
            let whole = stream(&images, &images, input.clone());
            for (task, epoch) in [(0, 0), (0, 1), (1, 0)] {
                let (mut seen, mut skipped) = (Vec::new(), vec![whole.skipped_images()]);
                for batch in whole.train_batches(key(task, epoch), 5, 0) {
                    seen.push(numbers(&batch.unwrap()));
                    skipped.push(whole.skipped_images());
                }
                assert!(seen.len() >= 3);
                for (first, skipped) in skipped.iter().enumerate() {
                    let again = stream(&images, &images, input.clone());
                    again.skip_images(skipped);
                    let before = images.total();
                    let batches = again.train_batches(key(task, epoch), 5, first);
                    let rest: Vec<_> = batches.map(|batch| numbers(&batch.unwrap())).collect();
                    assert!(rest == seen[first..], "task {task}, epoch {epoch}, from batch {first}");
                    assert_eq!(again.skipped_images(), whole.skipped_images());
                    assert_eq!(again.skipped_images().count(), whole.skipped_images().count());
                    let decoded = images.total() - before;
                    let found = whole.skipped_images().count().train - skipped.train.len();
                    // The images of an incomplete last batch may be decoded.
                    assert!(decoded < 5 * rest.len() + found + 5, "{decoded} decoded from batch {first}");
                }
            }
        }
    }
}

/// End of the message about a damaged image.
const REMEDY: &str = "remove the file, or set `stream.input.on_error = \"skip\"`";

#[test]
fn the_first_damaged_image_in_order_ends_the_pass_at_its_batch() {
    let intact = Images::new(48);
    let order = |stream: &ImageStream| -> Vec<usize> {
        // The red channel of an image is its index, which flip and crop do not change.
        let batches = stream.train_batches(key(0, 0), 4, 0).map(|batch| numbers(&batch.unwrap()).0);
        let red = batches.flat_map(|p| p.chunks(3 * SIDE * SIDE).map(|i| i[0]).collect::<Vec<_>>());
        red.map(|red| (255.0 * red).round() as usize).collect()
    };
    let order = order(&stream(&intact, &intact, settings(0, 0, OnError::Stop)));
    assert_eq!(order.len(), 24);
    let images = Images::new(48).damaged(&[order[10], order[9], order[17]], Damage::Error);
    for workers in [0, 1, 2, 5] {
        let stream = stream(&images, &intact, settings(workers, 1, OnError::Stop));
        let batches: Vec<_> = stream.train_batches(key(0, 0), 4, 0).collect();
        assert_eq!(batches.len(), 3);
        assert!(batches[..2].iter().all(Result::is_ok));
        let error = batches[2].as_ref().unwrap_err().to_string();
        assert_eq!(error, format!("{}.png: is damaged; {REMEDY}", order[9]));
        assert_eq!(stream.verify().unwrap_err().to_string(), {
            let first = images.damaged.keys().find(|&&index| index % CLASSES < 2).unwrap();
            format!("{first}.png: is damaged; {REMEDY}")
        });
    }
}

#[test]
fn a_panic_of_the_reader_is_an_error_that_names_the_image() {
    let images = Images::new(48).damaged(&[4], Damage::Panic);
    for workers in [0, 1, 3] {
        let stream = stream(&images, &images, settings(workers, 1, OnError::Stop));
        let last = stream.test_batches(0, 5).last().unwrap();
        let expected = format!("4.png: the image reader panicked: cannot decode 4.png; {REMEDY}");
        assert_eq!(last.unwrap_err().to_string(), expected);
    }
}

#[test]
fn skipping_keeps_batches_full_and_is_an_error_if_none_can_be_filled() {
    // Task 0 has the 24 images of classes 0 and 1.
    let first_task: Vec<usize> = (0..48).filter(|index| index % CLASSES < 2).collect();
    for workers in [0, 2] {
        let some = Images::new(48).damaged(&first_task[..7], Damage::Error);
        let stream_of = |images: &Images| stream(images, images, settings(workers, 1, OnError::Skip));
        let stream = stream_of(&some);
        let sizes =
            |batches: cdl_core::traits::Batches<'_>| batches.map(|b| b.unwrap().len()).collect::<Vec<_>>();
        // 17 images remain.
        assert_eq!(sizes(stream.train_batches(key(0, 0), 5, 0)), [5, 5, 5]);
        assert_eq!(sizes(stream.test_batches(0, 5)), [5, 5, 5, 2]);
        assert_eq!(stream.skipped_images().count().test, 7);

        let few = Images::new(48).damaged(&first_task[..20], Damage::Error);
        let error = stream_of(&few).train_batches(key(0, 0), 5, 0).last().unwrap().unwrap_err().to_string();
        assert!(error.contains("of 24 training images of task 1, fewer than 5 can be read"), "{error}");
        let all = Images::new(48).damaged(&first_task, Damage::Error);
        let stream = stream_of(&all);
        for _ in 0..2 {
            let batches: Vec<_> = stream.test_batches(0, 5).collect();
            assert_eq!(batches.len(), 1);
            let error = batches[0].as_ref().unwrap_err().to_string();
            assert!(error.contains("of 24 test images of task 1, fewer than 1 can be read"), "{error}");
        }
        assert_eq!(stream.skipped_images().count(), Skipped { train: 0, test: 24 });
    }
}

#[test]
fn cached_test_images_are_decoded_once_a_run_and_training_images_once_a_task() {
    for workers in [0, 2] {
        let (train, test) = (Images::new(48), Images::new(48));
        all_batches(&stream(&train, &test, settings(workers, 1, OnError::Stop)));
        assert_eq!(test.counts(), [1; 48]);
        // Each epoch of the first task drops 4 of 24 images. The second task rehearses cached images.
        let counts = train.counts();
        assert!(counts.iter().all(|&count| count <= 1) && train.total() >= 44, "{counts:?}");

        let (train, test) = (Images::new(48), Images::new(48));
        all_batches(&stream(&train, &test, settings(workers, 0, OnError::Stop)));
        assert_eq!(test.total(), 24 * 3);
        assert_eq!(train.total(), 2 * 20 + 2 * 30);
    }
}

#[test]
fn verify_caches_the_decoded_test_images() {
    let (train, test) = (Images::new(48), Images::new(48));
    let stream = stream(&train, &test, settings(1, 1, OnError::Stop));
    stream.verify().unwrap();
    assert_eq!((train.total(), test.total()), (48, 48));
    all_batches(&stream);
    assert_eq!(test.counts(), [1; 48]);
}

/// Images of a third of a megabyte, before and after the transform.
struct Large(Images);

impl ImageSet for Large {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn label(&self, index: usize) -> usize {
        self.0.label(index)
    }

    fn image(&self, index: usize) -> Result<RgbImage> {
        self.0.image(index)?;
        Ok(RgbImage::from_pixel(330, 330, Rgb([index as u8; 3])))
    }

    fn id(&self, index: usize) -> String {
        self.0.id(index)
    }
}

#[test]
fn the_cache_does_not_exceed_its_size() {
    let images = Images::new(16);
    let settings = TaskSettings {
        transform: TransformConfig { image_size: 330, ..Default::default() },
        input: settings(2, 1, OnError::Stop),
        ..Default::default()
    };
    let context = StreamContext { mode: Mode::Published, device: &Device::Cpu, rng: Rng::new(1) };
    let classes = (0..CLASSES).map(|class| class.to_string()).collect();
    let set = || Box::new(Large(images.clone()));
    let stream = ImageStream::new("test", classes, set(), set(), &settings, &context).unwrap();
    for pass in 0..3 {
        let before = images.total();
        assert_eq!(stream.test_batches(0, 5).map(|batch| batch.unwrap().len()).sum::<usize>(), 16);
        // Three images of 326,700 bytes fit into a megabyte.
        assert_eq!(images.total() - before, if pass == 0 { 16 } else { 13 });
    }
}

#[test]
fn dropping_a_pass_ends_its_threads() {
    for workers in [0, 1, 2, 5] {
        let images = Images::new(48);
        let stream = stream(&images, &images, settings(workers, 0, OnError::Stop));
        for taken in 0..4 {
            let mut batches = stream.train_batches(key(0, 0), 2, 0);
            for _ in 0..taken {
                batches.next().unwrap().unwrap();
            }
            drop(batches);
            // All threads have ended, so no more images are decoded.
            let total = images.total();
            std::thread::yield_now();
            assert_eq!(images.total(), total);
        }
    }
}

#[test]
fn prefetching_does_not_exceed_the_setting() {
    for workers in [0, 1, 2, 5] {
        let images = Images::new(48);
        let input = InputSettings { workers, prefetch: 2, cache_mb: 0, ..Default::default() };
        let stream = stream(&images, &images, input);
        let mut batches = stream.test_batches(0, 3);
        for taken in 1..=3 {
            batches.next().unwrap().unwrap();
            // Two batches ahead, rounded up to an equal number of images for each thread.
            assert!(images.total() < 3 * taken + 2 * 3 + workers.max(1), "{} decoded", images.total());
        }
    }
}

#[test]
fn values_out_of_range_are_refused_with_their_key() {
    for (input, key) in [
        (InputSettings { workers: 257, ..Default::default() }, "`input.workers = 257`"),
        (InputSettings { prefetch: 0, ..Default::default() }, "`input.prefetch = 0`"),
        (InputSettings { prefetch: 1_001, ..Default::default() }, "`input.prefetch = 1001`"),
    ] {
        let message = input.validate().unwrap_err().to_string();
        assert!(message.contains(key) && message.contains("expected"), "{message}");
    }
    assert!(InputSettings { cache_mb: usize::MAX, ..Default::default() }.validate().is_ok());
}
