//! Checks of streams.

use candle_core::Device;

use crate::{
    error::Result,
    registry::{self, Kind},
    rng::Rng,
    testing::{promise, read_settings},
    traits::{Batch, EpochKey, Mode, Role, StreamContext, TaskStream},
};

/// Images in a batch: few, so that the smallest tasks fill a batch.
const BATCH: usize = 3;

/// Checks the stream registered as `name`, with `settings` in TOML. Tasks must partition all classes in order, and
/// image counts, shapes and ranges of pixels and labels must be correct. The seed must determine all results. Reads all
/// images.
pub fn check_stream(name: &str, settings: &str) -> Result<()> {
    let settings = read_settings(Kind::Stream, name, settings)?;
    let build = || {
        let context = StreamContext { mode: Mode::Published, device: &Device::Cpu, rng: Rng::new(3) };
        registry::stream(name, &settings, &context)
    };
    let (stream, twin) = (build()?, build()?);
    let check = Check { plugin: format!("`{name}`"), stream: stream.as_ref() };
    check.tasks()?;
    check.promise(
        stream.record()?.fingerprint == twin.record()?.fingerprint,
        "equal settings and seeds give equal fingerprints",
    )?;
    for task in 0..stream.tasks().len() {
        check.training_batches(task, twin.as_ref())?;
        check.test_batches(task, twin.as_ref())?;
    }
    Ok(())
}

struct Check<'a> {
    plugin: String,
    stream: &'a dyn TaskStream,
}

impl Check<'_> {
    fn promise(&self, kept: bool, what: impl Into<String>) -> Result<()> {
        promise(&self.plugin, kept, what)
    }

    fn tasks(&self) -> Result<()> {
        let (tasks, classes) = (self.stream.tasks(), self.stream.classes().len());
        self.promise(!tasks.is_empty(), "a stream has tasks")?;
        let mut next = 0;
        for (index, task) in tasks.iter().enumerate() {
            self.promise(task.index == index && task.count >= tasks.len(), "tasks are numbered in order")?;
            self.promise(task.classes.start == next, "tasks contain the classes in order, each once")?;
            let named = task.classes.end > next && task.classes.end <= classes;
            self.promise(named, "every task has classes, all of them named")?;
            next = task.classes.end;
        }
        Ok(())
    }

    /// Checks the number of training batches, their contents, their determinism, and resuming within an epoch.
    fn training_batches(&self, task: usize, twin: &dyn TaskStream) -> Result<()> {
        let key = EpochKey { task, role: Role::Student, epoch: 1 };
        let classes = self.stream.train_classes(task);
        let (mut batches, mut second) = (0, None);
        let mut other = twin.train_batches(key, BATCH, 0);
        for batch in self.stream.train_batches(key, BATCH, 0) {
            let batch = batch?;
            self.promise(batch.len() == BATCH, "training batches are full")?;
            self.is_valid(&batch, classes.clone())?;
            self.are_equal(&batch, other.next().transpose()?, "the seed determines every batch")?;
            batches += 1;
            if batches == 2 {
                second = Some(batch);
            }
        }
        if let Some(second) = second {
            let rest = twin.train_batches(key, BATCH, 1).next().transpose()?;
            self.are_equal(&second, rest, "an epoch resumes with the remaining batches")?;
        }
        let stated = self.stream.train_count(task) / BATCH;
        let promise =
            format!("an epoch of task {task} has {stated} batches, as `train_count` states, not {batches}");
        self.promise(batches == stated, promise)
    }

    /// Checks the number of test images, their contents and their determinism.
    fn test_batches(&self, task: usize, twin: &dyn TaskStream) -> Result<()> {
        let classes = self.stream.tasks()[task].classes.clone();
        let mut images = 0;
        let mut other = twin.test_batches(task, BATCH);
        for batch in self.stream.test_batches(task, BATCH) {
            let batch = batch?;
            self.is_valid(&batch, classes.clone())?;
            self.are_equal(&batch, other.next().transpose()?, "the seed determines every batch")?;
            images += batch.len();
        }
        let stated = self.stream.test_count(task);
        let promise = format!("task {task} has {stated} test images, as `test_count` states, not {images}");
        self.promise(images == stated, promise)
    }

    /// Checks shape and range of the pixels, and that all labels are in `classes`.
    fn is_valid(&self, batch: &Batch, classes: std::ops::Range<usize>) -> Result<()> {
        let side = self.stream.image_size();
        let (shape, found) = ([batch.len(), 3, side, side], batch.pixels.dims());
        self.promise(found == shape, format!("pixels have the shape {shape:?}, not {found:?}"))?;
        let pixels = batch.pixels.flatten_all()?;
        let range = (pixels.min(0)?.to_scalar::<f32>()?, pixels.max(0)?.to_scalar::<f32>()?);
        self.promise(range.0 >= 0.0 && range.1 <= 1.0, format!("pixels lie in [0, 1], not in {range:?}"))?;
        let labels = batch.labels.to_vec1::<u32>()?;
        let foreign = labels.iter().find(|&&label| !classes.contains(&(label as usize)));
        self.promise(foreign.is_none(), format!("labels lie in {classes:?}, not {foreign:?}"))
    }

    /// Checks that two batches are equal.
    fn are_equal(&self, batch: &Batch, twin: Option<Batch>, promise: &str) -> Result<()> {
        let values = |batch: &Batch| -> Result<_> {
            Ok((batch.pixels.flatten_all()?.to_vec1::<f32>()?, batch.labels.to_vec1::<u32>()?))
        };
        let twin = twin.as_ref().map(values).transpose()?;
        self.promise(twin == Some(values(batch)?), promise)
    }
}
