//! Data sets that arrive in tasks.

pub mod embedded;
pub mod idx;
pub mod image_folder;
