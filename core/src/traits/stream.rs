//! Trait of streams of tasks, and the data that they exchange with the training loop.

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
    /// Index of the task, from 0.
    pub index: usize,
    /// Number of tasks in the stream.
    pub count: usize,
    /// Classes of the task. Lower indices belong to earlier tasks, higher indices to later tasks. In losses: the
    /// classes that are learned now, which with a rehearsal memory are all classes seen so far.
    pub classes: Range<usize>,
}

impl Task {
    /// Returns the number of classes seen up to and including this task.
    pub fn seen(&self) -> usize {
        self.classes.end
    }
}

/// Images with their labels.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Pixels `(B, 3, S, S)`, float32 in `[0, 1]`, not normalised.
    pub pixels: Tensor,
    /// Labels `(B,)`, u32: class indices in stream order, over all tasks.
    pub labels: Tensor,
}

impl Batch {
    /// Returns the number of images.
    pub fn len(&self) -> usize {
        self.labels.elem_count()
    }

    /// Returns whether the batch has no images.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Number of images of a class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClassCount {
    /// Name of the class.
    pub name: String,
    /// Training images, without rehearsed images.
    pub train: usize,
    /// Test images.
    pub test: usize,
}

/// Description of a stream's data, for run records and exported models.
#[derive(Debug, Clone, Default)]
pub struct StreamRecord {
    /// SHA-256 of the classes, their order and the images of both splits. Equal splits have equal fingerprints.
    pub fingerprint: String,
    /// Images of each class that the tasks use, in stream order. Empty if the stream does not count them.
    pub class_counts: Vec<ClassCount>,
    /// Files that contain the images. Empty if there are none.
    pub files: Vec<DataRecord>,
    /// Transform from an image file to a test image, for using models outside the run. `None` if the images do not come
    /// from files.
    pub transform: Option<TransformConfig>,
}

impl StreamRecord {
    /// Creates the record of a stream without files.
    pub fn of(fingerprint: impl Into<String>) -> Self {
        Self { fingerprint: fingerprint.into(), ..Self::default() }
    }
}

/// Key of a pass over a task's training images. Together with the stream's seed it determines order and augmentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochKey {
    /// Task index.
    pub task: usize,
    /// Network that is trained.
    pub role: Role,
    /// Index of the epoch, from 0.
    pub epoch: usize,
}

/// Iterator over batches.
pub type Batches<'a> = Box<dyn Iterator<Item = Result<Batch>> + 'a>;

/// A data set whose classes arrive task by task.
///
/// Most data sets implement [`ImageSet`](crate::data::ImageSet) instead and leave this trait to
/// [`ImageStream`](crate::data::ImageStream).
pub trait TaskStream: Send + Sync {
    /// Returns the class names in stream order.
    fn classes(&self) -> &[String];

    /// Returns all tasks in order.
    fn tasks(&self) -> &[Task];

    /// Returns the side of the images in pixels.
    fn image_size(&self) -> usize;

    /// Returns the number of training images of a task, including rehearsed images of earlier tasks.
    fn train_count(&self, task: usize) -> usize;

    /// Returns the number of test images of a task.
    fn test_count(&self, task: usize) -> usize;

    /// Returns the shuffled, augmented training batches of an epoch, starting at batch `first`, so that a run can
    /// resume within an epoch. The last incomplete batch is dropped.
    fn train_batches(&self, key: EpochKey, batch_size: usize, first: usize) -> Batches<'_>;

    /// Returns all test images of a task in a fixed order. The last batch may be smaller.
    fn test_batches(&self, task: usize, batch_size: usize) -> Batches<'_>;

    /// Returns the description of the data, for run records and exported models.
    fn record(&self) -> Result<StreamRecord>;

    /// Returns the classes over which the losses of a task are computed: the task's own classes, or with rehearsal all
    /// classes seen so far.
    fn train_classes(&self, task: usize) -> Range<usize> {
        self.tasks()[task].classes.clone()
    }

    /// Returns the quirks that settings of this stream turn on or off, for the run record.
    fn quirks(&self) -> Vec<Quirk> {
        Vec::new()
    }

    /// Returns the interface of image files, which may be damaged, or `None` for a stream without image files.
    fn image_files(&self) -> Option<&dyn ImageFiles> {
        None
    }
}

impl dyn TaskStream + '_ {
    /// Returns the number of unreadable images that have been skipped so far.
    pub fn skipped(&self) -> Skipped {
        self.image_files().map(|files| files.skipped_images().count()).unwrap_or_default()
    }
}

/// Images from files, which may be damaged. [`ImageStream`](crate::data::ImageStream) implements this trait.
pub trait ImageFiles {
    /// Decodes at most `limit` training images and `limit` test images of a task. Calls `progress` after each image.
    fn inspect(&self, task: usize, limit: usize, progress: &(dyn Fn() + Sync)) -> Inspection;

    /// Returns the unreadable images that have been skipped so far, for checkpoints.
    fn skipped_images(&self) -> SkippedImages;

    /// Skips the images that a resumed run had skipped before.
    fn skip_images(&self, images: &SkippedImages);
}

/// Result of decoding images of a task before a run.
#[derive(Debug, Default)]
pub struct Inspection {
    /// Number of images checked, including damaged ones.
    pub checked: usize,
    /// Errors of the damaged images, in order.
    pub damaged: Vec<Error>,
}

/// Indices of skipped images in their image sets.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SkippedImages {
    /// Training images.
    pub train: Vec<usize>,
    /// Test images.
    pub test: Vec<usize>,
}

impl SkippedImages {
    /// Returns the number of images of both sets.
    pub fn count(&self) -> Skipped {
        Skipped { train: self.train.len(), test: self.test.len() }
    }
}

/// Numbers of unreadable images that have been skipped so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Skipped {
    /// Training images.
    pub train: usize,
    /// Test images.
    pub test: usize,
}

/// Context in which a stream is built.
#[derive(Debug)]
pub struct StreamContext<'a> {
    /// `published` or `corrected`: selects the defaults of some settings.
    pub mode: Mode,
    /// Device of the batches.
    pub device: &'a Device,
    /// Generator for class order, batch order and augmentation.
    pub rng: Rng,
}
