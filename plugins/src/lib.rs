//! The built-in plugins: frozen networks, prompt methods, distillation methods and data streams.
//!
//! One method is one file, which registers itself. To add one, write the file and its `mod` line in the folder's
//! `mod.rs`; nothing else names it.

pub mod backbones;
pub mod distillers;
pub mod learners;
pub mod streams;

mod data;

pub use data::image_files;

/// Keeps the plugins in a program. The linker may leave out a crate that nothing refers to, and its registrations with
/// it; a call of this function is such a reference.
pub fn link() {}
