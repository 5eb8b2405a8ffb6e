//! Traits of the four kinds of plugin, and the data that they exchange with the framework.

mod backbone;
mod data_record;
mod distiller;
mod injection;
mod learner;
mod macs;
mod mode;
mod provenance;
mod query;
mod role;
mod selection;
mod state;
mod stream;

pub use backbone::{
    Backbone, BackboneContext, BackboneSpec, Features, HeadsFrom, Normalization, Portable, Taps,
};
pub use data_record::{DataRecord, Hashed};
pub use distiller::{Distiller, DistillerContext, DistillerTaps, LossTerm, Output, require_teacher};
pub(crate) use injection::Parts;
pub use injection::{BlockInjection, Injection, Kv};
pub use learner::{Head, Learner, LearnerContext, NamedVar, Pass, Quirk};
pub use macs::{BlockLengths, Lengths, Macs, Transformer};
pub use mode::Mode;
pub use provenance::Provenance;
pub use query::{Query, QuerySource};
pub use role::{ByRole, Role};
pub use selection::{PromptUsage, Selection};
pub use state::StateDict;
pub(crate) use state::not_finite;
pub use stream::{
    Batch, Batches, ClassCount, EpochKey, ImageFiles, Inspection, Skipped, SkippedImages, StreamContext,
    StreamRecord, Task, TaskStream,
};
