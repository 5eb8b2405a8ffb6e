//! Contents of `results.json`.

use serde::{Deserialize, Serialize};

use crate::{
    metrics::{PoolUsage, Summary},
    train::Cost,
    traits::{ByRole, Role, Skipped},
};

/// Contents of `results.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// Version of the format, [`Results::FORMAT`]. Files without this key have version 1.
    #[serde(default = "first_format")]
    pub format: u32,
    /// Accuracies of the student in percent, `null` if it was not trained.
    pub student: Option<Summary>,
    /// Accuracies of the teacher in percent, `null` if it was not trained.
    pub teacher: Option<Summary>,
    /// Number of test images of each finished task, without skipped ones. Empty in files of older versions.
    #[serde(default)]
    pub test_images: Vec<usize>,
    /// Accuracy in percent on the test images of each class after the last finished task, in stream order; `null` for a
    /// class without test images, and for a network that was not trained.
    #[serde(default)]
    pub class_accuracy: ByRole<Option<Vec<Option<f64>>>>,
    /// Usage of the prompts of each pool by test images after the last finished task. An empty list for a network whose
    /// methods select no prompts.
    #[serde(default)]
    pub prompt_use: ByRole<Option<Vec<PoolUsage>>>,
    /// Number of trainable parameters, and multiply-accumulate operations of one image.
    #[serde(default)]
    pub cost: ByRole<Option<Cost>>,
    /// Number of finished tasks.
    pub tasks_done: usize,
    /// Number of tasks of the run: all tasks of the stream, at most `stream.max_tasks`.
    pub tasks: usize,
    /// Seconds of the run, without the time between a stop and resuming.
    pub wall_seconds: f64,
    /// Peak resident memory, if the system reports it.
    #[serde(default)]
    pub peak_memory_bytes: Option<u64>,
    /// Number of unreadable images that were skipped (`stream.input.on_error = "skip"`).
    #[serde(default)]
    pub skipped_images: Skipped,
}

fn first_format() -> u32 {
    1
}

impl Results {
    /// Current version of the format. Version 1 calls trainable parameters `trained_numbers`.
    pub const FORMAT: u32 = 2;

    /// Returns the accuracies of one network, if it was trained.
    pub fn of(&self, role: Role) -> Option<&Summary> {
        match role {
            Role::Student => self.student.as_ref(),
            Role::Teacher => self.teacher.as_ref(),
        }
    }
}
