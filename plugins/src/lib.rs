//! Built-in plugins: backbones, prompt learners, distillers and data streams.
//!
//! Each method is one file, which registers itself. To add a method, write the file and add its `mod` line to the
//! folder's `mod.rs`. No other file names it.

pub mod backbones;
pub mod distillers;
pub mod learners;
pub mod streams;

mod data;

pub use data::image_files;

/// Keeps the built-in plugins in a program. The linker drops a crate that nothing refers to, together with its
/// registrations; a call of this function is such a reference.
pub fn link() {}
