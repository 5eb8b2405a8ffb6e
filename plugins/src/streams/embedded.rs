//! What the repository carries: 3,500 images of Fashion-MNIST (Xiao et al., arXiv 1708.07747; MIT licence), so that a
//! run needs nothing but this program.

use std::path::Path;

use cdl_core::{
    data::{ImageStream, TaskSettings},
    prelude::*,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::idx::{IdxSet, unzip};

/// Settings of `embedded`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct EmbeddedConfig {
    /// Tasks, subsets and transforms.
    #[serde(flatten)]
    pub tasks: TaskSettings,
}

cdl_core::register!(Stream {
    name: "embedded",
    about: "Fashion-MNIST subset inside this program: 250 training and 100 test images a class",
    citation: "Xiao et al., 2017, arXiv:1708.07747",
    config: EmbeddedConfig,
    build: build,
});

const TRAIN_IMAGES: &[u8] = include_bytes!("../../assets/fashion_mnist/train-images-idx3-ubyte.gz");
const TRAIN_LABELS: &[u8] = include_bytes!("../../assets/fashion_mnist/train-labels-idx1-ubyte.gz");
const TEST_IMAGES: &[u8] = include_bytes!("../../assets/fashion_mnist/t10k-images-idx3-ubyte.gz");
const TEST_LABELS: &[u8] = include_bytes!("../../assets/fashion_mnist/t10k-labels-idx1-ubyte.gz");
const CLASSES: &str = include_str!("../../assets/fashion_mnist/classes.txt");

fn build(config: EmbeddedConfig, context: &StreamContext<'_>) -> Result<Box<dyn TaskStream>> {
    let set = |split: &str, images: &[u8], labels: &[u8]| -> Result<IdxSet> {
        let file = Path::new("embedded");
        let open = |bytes: &[u8]| {
            unzip(bytes.to_vec()).map_err(|e| Error::Data { file: file.into(), reason: e.to_string() })
        };
        let record = |what: &str, bytes: &[u8]| {
            DataRecord::of_bytes(Path::new(&format!("embedded:{split}-{what}-ubyte.gz")), bytes)
        };
        let records = vec![record("images-idx3", images), record("labels-idx1", labels)];
        Ok(IdxSet::parse(file, &open(images)?, file, &open(labels)?)?.of_files(records))
    };
    let classes = CLASSES.lines().map(String::from).collect();
    let (train, test) = (set("train", TRAIN_IMAGES, TRAIN_LABELS)?, set("t10k", TEST_IMAGES, TEST_LABELS)?);
    let stream =
        ImageStream::new("embedded", classes, Box::new(train), Box::new(test), &config.tasks, context)?;
    Ok(Box::new(stream))
}
