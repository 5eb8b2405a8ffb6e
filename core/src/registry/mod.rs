//! Registry of plugins: registration, settings, guards against panics, and loading at run time.

pub mod dynamic;
mod entry;
mod panic_guard;
pub mod ranges;
mod settings;

pub use entry::{Build, Entry, Kind, backbone, distiller, entries, find, learner, stream};
pub(crate) use panic_guard::backward;
pub use panic_guard::catch;
pub use settings::{Settings, complete, defaults_of, parse, schema_of};
pub(crate) use settings::{check_keys, leaves, lookup};
