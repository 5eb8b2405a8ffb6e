//! Data set formats shared by several streams.

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

/// Result of parsing. The error is the reason without the file's name, which the caller adds.
pub(crate) type Parsed<T> = std::result::Result<T, String>;

/// Reads a file.
pub(crate) fn read(file: &Path) -> Result<Vec<u8>> {
    cdl_core::system::files::read(file).map_err(unreadable(file))
}

/// Converts an I/O error into an error that names the file or folder.
pub(crate) fn unreadable(file: &Path) -> impl Fn(io::Error) -> Error {
    move |e| Error::data(file, format!("cannot be read: {e}"))
}
