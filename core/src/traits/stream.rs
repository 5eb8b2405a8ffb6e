//! The stream of tasks: its contract, and [`ImageStream`], which makes one of any set of labelled images.

use std::ops::Range;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::traits::DataRecord;
use crate::{
    error::Result,
    rng::Rng,
    traits::{Mode, Quirk, Role},
    transform::TransformConfig,
};

/// Derives a stream's generator from the run's.
pub(crate) const RNG: &str = "stream";

/// One task: a range of the classes in stream order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Counted from 0.
    pub index: usize,
    /// Number of tasks in the stream.
    pub count: usize,
    /// Its classes; those before are past, those after unseen. In losses: the classes that are learned now, which
    /// with a rehearsal memory are all seen so far.
    pub classes: Range<usize>,
}

impl Task {
    /// Classes seen up to and including this task.
    pub fn seen(&self) -> usize {
        self.classes.end
    }
}

/// Images with their labels.
#[derive(Debug, Clone)]
pub struct Batch {
    /// `(B, 3, S, S)` float32 in `[0, 1]`, not normalised.
    pub pixels: Tensor,
    /// `(B,)` u32, positions in stream order over all classes.
    pub labels: Tensor,
}

impl Batch {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.elem_count()
    }

    /// Whether it holds no image.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Images of a class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassCount {
    /// The class.
    pub name: String,
    /// Training images, rehearsed ones not counted again.
    pub train: usize,
    /// Test images.
    pub test: usize,
}

/// What a look at the images of a task found.
#[derive(Debug, Default)]
pub struct Inspection {
    /// Images that were decoded, or could not be.
    pub looked_at: usize,
    /// Those that could not be, in order.
    pub damaged: Vec<Error>,
}

/// Number of images that were left out because they could not be read, as far as they have been met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Skipped {
    /// Training images.
    pub train: usize,
    /// Test images.
    pub test: usize,
}

/// The images that were left out, by their number in their set.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LeftOut {
    /// Training images.
    pub train: Vec<usize>,
    /// Test images.
    pub test: Vec<usize>,
}

/// Names one pass over a task's training images; order and augmentation follow from it and the stream's seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochKey {
    /// Task index.
    pub task: usize,
    /// Who learns.
    pub role: Role,
    /// Counted from 0.
    pub epoch: usize,
}

/// Batches, one after the other.
pub type Batches<'a> = Box<dyn Iterator<Item = Result<Batch>> + 'a>;

/// Classes arriving task by task.
pub trait TaskStream: Send + Sync {
    /// Class names in stream order.
    fn classes(&self) -> &[String];

    /// All tasks in order.
    fn tasks(&self) -> &[Task];

    /// Side of the images in pixels.
    fn image_size(&self) -> usize;

    /// How an image file becomes a test image, for use of the models outside the run; `None` where the images come from
    /// no files.
    fn transform(&self) -> Option<TransformConfig> {
        None
    }

    /// Classes among which a task is learned: its own, or all seen so far where images of earlier ones are rehearsed.
    fn train_classes(&self, task: usize) -> Range<usize> {
        self.tasks()[task].classes.clone()
    }

    /// Departures of the published code that this stream can switch, for the run record.
    fn quirks(&self) -> Vec<Quirk> {
        Vec::new()
    }

    /// Training images of a task, rehearsed ones included.
    fn train_count(&self, task: usize) -> usize;

    /// Test images of a task.
    fn test_count(&self, task: usize) -> usize;

    /// Images of each class, in stream order, that the stream's tasks use; none where a stream does not count them.
    fn class_counts(&self) -> Vec<ClassCount> {
        Vec::new()
    }

    /// SHA-256 over classes, order and membership of both splits: equal splits have equal fingerprints.
    fn fingerprint(&self) -> &str;

    /// The files that the images come from, with their SHA-256, for the run record; none for images that come from no file.
    ///
    /// # Errors
    /// Files that are no longer there.
    fn files(&self) -> Result<Vec<DataRecord>> {
        Ok(Vec::new())
    }

    /// Decodes at most `most` training images and as many test images of a task, and tells `seen` of each. A stream whose
    /// images cannot be damaged looks at none.
    fn inspect(&self, _task: usize, _most: usize, _seen: &(dyn Fn() + Sync)) -> Inspection {
        Inspection::default()
    }

    /// Images that have been left out so far because they could not be read; none unless the stream skips such images.
    fn skipped(&self) -> Skipped {
        Skipped::default()
    }

    /// Which images these are, for a run that is to go on later.
    fn left_out(&self) -> LeftOut {
        LeftOut::default()
    }

    /// Leaves out what a run had left out when it was stopped.
    fn leave_out(&self, images: &LeftOut) {
        let _ = images;
    }

    /// Shuffled, augmented batches; the last incomplete one is dropped.
    fn train_batches(&self, key: EpochKey, batch_size: usize) -> Batches<'_>;

    /// The same from batch `first` on, where a run goes on in the middle of an epoch. Streams that can leave out the
    /// work of the batches before do so.
    fn train_batches_from(&self, key: EpochKey, batch_size: usize, first: usize) -> Batches<'_> {
        let all = self.train_batches(key, batch_size).enumerate();
        Box::new(
            all.filter(move |(number, batch)| *number >= first || batch.is_err()).map(|(_, batch)| batch),
        )
    }

    /// All test images of a task in a fixed order, the last batch possibly smaller.
    fn test_batches(&self, task: usize, batch_size: usize) -> Batches<'_>;
}

/// What a stream is built for.
#[derive(Debug)]
pub struct StreamContext<'a> {
    /// `published` or `corrected`: defaults of settings that differ between the two.
    pub mode: Mode,
    /// Where batches go.
    pub device: &'a Device,
    /// Generator for class order, batch order and augmentation.
    pub rng: Rng,
}
