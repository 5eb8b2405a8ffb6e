//! The built-in plugins: frozen networks, prompt methods, distillation methods and data streams. One method, one
//! file; each registers itself.

pub mod backbones;
pub mod distillers;
pub mod learners;
pub mod streams;

/// Ties the plugins into a program. A crate that nothing refers to may be left out by the linker, and its
/// registrations with it; calling this keeps them.
pub fn link() {}
