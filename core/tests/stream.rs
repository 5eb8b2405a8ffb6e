//! Tests of the settings of all image streams, with images whose grey level is their index.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use cdl_core::{
    candle_core::Device,
    data::{ImageSet, ImageStream, TaskSettings},
    error::Result,
    image::RgbImage,
    rng::Rng,
    traits::{EpochKey, Mode, Role, StreamContext, TaskStream},
    transform::{TestTransform, TrainTransform, TransformConfig},
};

/// Set of `count` images for each of three classes. Image `i` has class `i mod 3` and the grey level `first + i`.
struct Numbered {
    first: usize,
    count: usize,
}

impl ImageSet for Numbered {
    fn len(&self) -> usize {
        3 * self.count
    }
    fn label(&self, index: usize) -> usize {
        index % 3
    }
    fn image(&self, index: usize) -> Result<RgbImage> {
        Ok(RgbImage::from_pixel(2, 2, [(self.first + index) as u8; 3].into()))
    }
    fn id(&self, index: usize) -> String {
        (self.first + index).to_string()
    }
}

/// Builds a stream of training images 0 to 29 and test images 100 to 108 in three tasks.
fn stream(settings: TaskSettings, seed: u64) -> Result<ImageStream> {
    let transform = TransformConfig {
        image_size: 2,
        train: TrainTransform::Test,
        test: TestTransform::Resize,
        flip: false,
        ..TransformConfig::default()
    };
    let settings = TaskSettings { tasks: Some(3), transform, ..settings };
    let context = StreamContext { mode: Mode::Published, device: &Device::Cpu, rng: Rng::new(seed) };
    let classes = ["a", "b", "c"].map(String::from).to_vec();
    let (train, test) = (Numbered { first: 0, count: 10 }, Numbered { first: 100, count: 3 });
    ImageStream::new("numbered", classes, Box::new(train), Box::new(test), &settings, &context)
}

fn numbers(batches: cdl_core::traits::Batches<'_>) -> Vec<usize> {
    let pixels = |batch: Result<cdl_core::traits::Batch>| {
        let pixels = batch.unwrap().pixels.flatten_from(1).unwrap().narrow(1, 0, 1).unwrap();
        pixels.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    batches.flat_map(pixels).map(|value| (value * 255.0).round() as usize).collect()
}

fn train(stream: &ImageStream, task: usize) -> BTreeSet<usize> {
    let key = EpochKey { task, role: Role::Student, epoch: 0 };
    numbers(stream.train_batches(key, 1, 0)).into_iter().collect()
}

#[test]
fn validation_divides_the_training_images_of_each_class() -> Result<()> {
    let with = |share: f64| TaskSettings { validation: Some(share), ..TaskSettings::default() };
    let divided = stream(with(0.2), 0)?;
    for task in 0..3 {
        let (kept, held_out) = (train(&divided, task), numbers(divided.test_batches(task, 4)));
        assert_eq!((kept.len(), held_out.len()), (8, 2));
        let all: BTreeSet<usize> = kept.into_iter().chain(held_out).collect();
        assert_eq!(all, (0..10).map(|i| 3 * i + task).collect(), "the training images of class {task}");
    }
    assert_eq!(
        divided.record()?.fingerprint,
        stream(with(0.2), 1)?.record()?.fingerprint,
        "the split does not depend on the seed"
    );
    assert_ne!(divided.record()?.fingerprint, stream(TaskSettings::default(), 0)?.record()?.fingerprint);

    // Limits apply after the split.
    let limited = TaskSettings { train_per_class: Some(5), test_per_class: Some(1), ..with(0.2) };
    let limited = stream(limited, 0)?;
    assert_eq!((limited.train_count(0), limited.test_count(0)), (5, 1));
    assert!(train(&limited, 0).is_subset(&train(&divided, 0)));

    // Both parts have images for any share.
    for share in [0.001, 0.999] {
        let stream = stream(with(share), 0)?;
        assert!(stream.train_count(1) > 0 && stream.test_count(1) > 0);
    }
    for share in [0.0, 1.0, -0.5, f64::NAN] {
        let message = stream(with(share), 0).err().expect("an error").to_string();
        assert!(message.contains("`validation = ") && message.contains("such as 0.2"), "{message}");
    }
    Ok(())
}

#[test]
fn max_tasks_does_not_change_the_first_tasks() -> Result<()> {
    let all = stream(TaskSettings::default(), 0)?;
    let two = stream(TaskSettings { max_tasks: Some(2), ..TaskSettings::default() }, 0)?;
    assert_eq!(two.tasks(), &all.tasks()[..2], "the number of tasks and classes in each task is unchanged");
    assert_eq!(two.classes(), all.classes());
    let key = EpochKey { task: 1, role: Role::Teacher, epoch: 3 };
    assert_eq!(numbers(two.train_batches(key, 2, 0)), numbers(all.train_batches(key, 2, 0)));
    let more = stream(TaskSettings { max_tasks: Some(9), ..TaskSettings::default() }, 0)?;
    assert_eq!(more.tasks(), all.tasks());
    let none = stream(TaskSettings { max_tasks: Some(0), ..TaskSettings::default() }, 0);
    assert!(none.err().expect("an error").to_string().contains("`max_tasks = 0`"));
    Ok(())
}
