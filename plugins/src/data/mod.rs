//! Forms in which data sets come, for the streams that share them.

pub(crate) mod folder;
pub mod image_files;
pub(crate) mod numpy;
pub(crate) mod pages;
pub(crate) mod shards;
pub(crate) mod split_list;
pub(crate) mod splits;
pub(crate) mod table;
