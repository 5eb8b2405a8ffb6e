//! Images in one folder for each class, split by folders or by lists.

use cdl_core::prelude::*;

use crate::data::splits::{SplitConfig, Splits};

cdl_core::register!(Stream {
    name: "image_folder",
    about: "Images in one folder for each class, split by train/ and test/ folders or by lists",
    citation: "layout of torchvision's ImageFolder",
    config: SplitConfig,
    build: build,
});

fn build(config: SplitConfig, context: &StreamContext<'_>) -> Result<Box<dyn TaskStream>> {
    let splits = match config.listed()? {
        Some(splits) => splits,
        None => Splits::folders(&config.path)?,
    };
    config.stream("image_folder", &splits, context)
}
