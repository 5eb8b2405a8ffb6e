//! Images in one folder per class, split by folders or by lists.

use crate::data::splits::{SplitConfig, Splits};

cdl_core::register!(Stream {
    name: "image_folder",
    about: "Images in one folder per class, split by train/ and test/ folders or by lists",
    citation: "layout of torchvision's ImageFolder",
    config: SplitConfig,
    build: |config: SplitConfig, context: &_| config.stream("image_folder", context, Splits::folders),
});
