//! Streams of tasks over labelled images: splits, batches, rehearsal. Start reading at `image_stream`. `batches` and
//! `ordered` prepare images on other threads while the networks compute.

mod batches;
mod cache;
mod image_source;
mod image_stream;
mod input_settings;
mod ordered;
mod rehearsal;
mod tasks;

pub(crate) use batches::upload_squares;
pub use image_stream::{ImageSet, ImageStream};
pub use input_settings::{InputSettings, OnError};
pub(crate) use tasks::STREAM_RNG;
pub use tasks::{ClassOrder, TaskSettings};
