//! Shared code of the tests of streams and of networks.
#![allow(dead_code, reason = "each test file uses a part of this module")]

pub mod networks;

use std::{collections::BTreeSet, path::PathBuf};

use cdl_core::{
    candle_core::Device,
    error::Result,
    registry::{self, Settings},
    rng::Rng,
    traits::{Batch, EpochKey, Mode, Role, StreamContext, TaskStream},
};

/// Builds a stream by name, with settings in TOML.
pub fn stream(name: &str, settings: &str, seed: u64) -> Result<Box<dyn TaskStream>> {
    cdl_plugins::link();
    let settings: Settings = toml::from_str(settings).unwrap();
    let context = StreamContext { mode: Mode::Published, device: &Device::Cpu, rng: Rng::new(seed) };
    registry::stream(name, &settings, &context)
}

/// Returns the error of a stream that cannot be built.
pub fn failure(name: &str, settings: &str) -> String {
    stream(name, settings, 0).err().expect("an error").to_string()
}

/// Returns the folder of the small data sets written by `fixtures/streams/make.py`.
pub fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/streams")
}

/// Returns transforms that do not change an image of `side` pixels.
pub fn untouched(side: usize) -> String {
    format!("[transform]\nimage_size = {side}\ntrain = \"test\"\nflip = false\ntest = \"resize\"")
}

/// Returns the value of pixel (x, y) of channel `c` of the fixtures' image `i`.
pub fn grey(i: usize, x: usize, y: usize, c: usize) -> u8 {
    ((37 * i + 59 * c + 3 * x + 5 * y) % 256) as u8
}

/// Identifies the fixtures' images in a batch by all their pixels. Returns their numbers and labels.
pub fn numbers(batch: &Batch) -> Vec<(usize, u32)> {
    let (count, _, side, _) = batch.pixels.dims4().unwrap();
    let labels = batch.labels.to_vec1::<u32>().unwrap();
    (0..count)
        .map(|at| {
            let pixels = batch.pixels.get(at).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let is = |i: usize| {
                pixels.iter().enumerate().all(|(n, &value)| {
                    let (c, y, x) = (n / side / side, n / side % side, n % side);
                    value == f32::from(grey(i, x, y, c)) / 255.0
                })
            };
            ((0..100).find(|&i| is(i)).expect("an image of the fixtures, equal in every pixel"), labels[at])
        })
        .collect()
}

/// Returns numbers and labels of all training images of a task in one epoch.
pub fn train_numbers(stream: &dyn TaskStream, task: usize) -> BTreeSet<(usize, u32)> {
    let key = EpochKey { task, role: Role::Student, epoch: 0 };
    stream.train_batches(key, 1, 0).flat_map(|batch| numbers(&batch.unwrap())).collect()
}

/// Returns numbers and labels of all test images of a task in order.
pub fn test_numbers(stream: &dyn TaskStream, task: usize) -> Vec<(usize, u32)> {
    stream.test_batches(task, 3).flat_map(|batch| numbers(&batch.unwrap())).collect()
}
