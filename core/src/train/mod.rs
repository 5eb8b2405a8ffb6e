//! Training: the loop over tasks, the losses of a batch, the optimiser, and the evaluation after each task.

mod cost;
mod distiller_stack;
mod epoch_report;
mod evaluator;
mod network;
mod optimizer;
mod position;
mod queries;
mod schedule;
mod step;
mod trainer;
mod training_loop;

pub use cost::{Cost, InferenceMacs, TrainingMacs};
pub use distiller_stack::DistillerStack;
pub use epoch_report::{EpochMetrics, EpochReport};
pub(crate) use evaluator::count_correct;
pub use evaluator::{Accuracies, Evaluation, Evaluator};
pub use network::Network;
pub(crate) use network::PassOutput;
pub use optimizer::{Optimizer, OptimizerConfig, OptimizerName};
pub use position::{Position, RunState, Snapshot};
pub(crate) use queries::Queries;
pub use schedule::{ScheduleConfig, ScheduleName};
pub use step::BatchLoss;
pub use trainer::{TrainSettings, Trainer};
pub use training_loop::Event;
