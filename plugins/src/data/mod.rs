//! Formats of data sets that several streams read.

pub(crate) mod class_folders;
pub mod image_files;
pub(crate) mod numpy;
pub(crate) mod pages;
pub(crate) mod planes;
pub(crate) mod shards;
pub(crate) mod split_list;
pub(crate) mod splits;
pub(crate) mod table;

use std::{io, path::Path};

use cdl_core::prelude::*;

/// Result with the reason why a file cannot be used, for readers that do not know its name.
pub(crate) type Parsed<T> = std::result::Result<T, String>;

/// Contents of a file.
pub(crate) fn read(file: &Path) -> Result<Vec<u8>> {
    cdl_core::system::files::read(file).map_err(unreadable(file))
}

/// Turns the system's error about a file or folder into one that names it.
pub(crate) fn unreadable(file: &Path) -> impl Fn(io::Error) -> Error {
    move |e| Error::data(file, format!("cannot be read: {e}"))
}
