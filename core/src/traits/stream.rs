//! Contract of a stream of tasks, and the values that it exchanges with the training loop.

use std::ops::Range;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    rng::Rng,
    traits::{DataRecord, Mode, Quirk, Role},
    transform::TransformConfig,
};

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

/// Number of images of a class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassCount {
    /// Name of the class.
    pub name: String,
    /// Training images, rehearsed ones not counted again.
    pub train: usize,
    /// Test images.
    pub test: usize,
}

/// Description of a stream's data, for run records and exported models.
#[derive(Debug, Clone, Default)]
pub struct StreamRecord {
    /// SHA-256 over classes, order and membership of both splits: equal splits have equal fingerprints.
    pub fingerprint: String,
    /// Images of each class that the tasks use, in stream order; empty where a stream does not count them.
    pub class_counts: Vec<ClassCount>,
    /// Files that the images come from; empty where they come from none.
    pub files: Vec<DataRecord>,
    /// Transform from an image file to a test image, for use of the models outside the run; `None` where the images
    /// come from no files.
    pub transform: Option<TransformConfig>,
}

impl StreamRecord {
    /// Record of images that come from no files.
    pub fn of(fingerprint: impl Into<String>) -> Self {
        Self { fingerprint: fingerprint.into(), ..Self::default() }
    }
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
///
/// Most data sets implement [`ImageSet`](crate::data::ImageSet) instead and leave this trait to
/// [`ImageStream`](crate::data::ImageStream).
pub trait TaskStream: Send + Sync {
    /// Class names in stream order.
    fn classes(&self) -> &[String];

    /// All tasks in order.
    fn tasks(&self) -> &[Task];

    /// Side of the images in pixels.
    fn image_size(&self) -> usize;

    /// Number of training images of a task, rehearsed ones included.
    fn train_count(&self, task: usize) -> usize;

    /// Number of test images of a task.
    fn test_count(&self, task: usize) -> usize;

    /// Shuffled, augmented training batches of an epoch, without the first `first` of them: a run that was stopped goes
    /// on in the middle of an epoch. The last incomplete batch is dropped.
    fn train_batches(&self, key: EpochKey, batch_size: usize, first: usize) -> Batches<'_>;

    /// All test images of a task in a fixed order, the last batch possibly smaller.
    fn test_batches(&self, task: usize, batch_size: usize) -> Batches<'_>;

    /// Description of the data, for run records and exported models.
    fn record(&self) -> Result<StreamRecord>;

    /// Classes among which a task is learned: its own, or all seen so far where images of earlier ones are rehearsed.
    fn train_classes(&self, task: usize) -> Range<usize> {
        self.tasks()[task].classes.clone()
    }

    /// Departures of the published code that this stream can switch, for the run record.
    fn quirks(&self) -> Vec<Quirk> {
        Vec::new()
    }

    /// Images that can turn out to be damaged; `None` for a stream whose images cannot.
    fn image_files(&self) -> Option<&dyn ImageFiles> {
        None
    }
}

impl dyn TaskStream + '_ {
    /// Number of images that have been left out so far because they could not be read.
    pub fn skipped(&self) -> Skipped {
        self.image_files().map(|files| files.skipped_images().count()).unwrap_or_default()
    }
}

/// Images that are read from files and may be damaged. [`ImageStream`](crate::data::ImageStream) implements it.
pub trait ImageFiles {
    /// Decodes at most `most` training images and as many test images of a task, and calls `seen` after each.
    fn inspect(&self, task: usize, most: usize, seen: &(dyn Fn() + Sync)) -> Inspection;

    /// Images that have been left out so far because they could not be read, for a run that is to go on later.
    fn skipped_images(&self) -> SkippedImages;

    /// Leaves out the images that a run had left out when it was stopped.
    fn skip_images(&self, images: &SkippedImages);
}

/// Result of decoding images of a task ahead of a run.
#[derive(Debug, Default)]
pub struct Inspection {
    /// Number of images that were decoded, or could not be.
    pub checked: usize,
    /// Images that could not be decoded, in order.
    pub damaged: Vec<Error>,
}

/// Images that were left out, by their number in their set.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SkippedImages {
    /// Training images.
    pub train: Vec<usize>,
    /// Test images.
    pub test: Vec<usize>,
}

impl SkippedImages {
    /// Number of images in both sets.
    pub fn count(&self) -> Skipped {
        Skipped { train: self.train.len(), test: self.test.len() }
    }
}

/// Number of images that were left out because they could not be read, as far as they have been met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Skipped {
    /// Training images.
    pub train: usize,
    /// Test images.
    pub test: usize,
}

/// Surroundings that a stream is built for.
#[derive(Debug)]
pub struct StreamContext<'a> {
    /// `published` or `corrected`: defaults of settings that differ between the two.
    pub mode: Mode,
    /// Where batches go.
    pub device: &'a Device,
    /// Generator for class order, batch order and augmentation.
    pub rng: Rng,
}
