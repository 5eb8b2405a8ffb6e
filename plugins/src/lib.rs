//! The built-in plugins: frozen networks, prompt methods, distillation methods and data streams. One method, one
//! file; each registers itself, and every file in the four folders is a module without being named anywhere.

/// Frozen networks.
pub mod backbones {
    automod::dir!(pub "src/backbones");
}

/// Prompt methods.
pub mod learners {
    automod::dir!(pub "src/learners");
}

/// Distillation methods.
pub mod distillers {
    automod::dir!(pub "src/distillers");
}

/// Data sets that arrive in tasks.
pub mod streams {
    automod::dir!(pub "src/streams");
}

mod data;

pub use data::image_files;

/// Ties the plugins into a program. A crate that nothing refers to may be left out by the linker, and its
/// registrations with it; calling this keeps them.
pub fn link() {}
