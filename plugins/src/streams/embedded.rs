//! Subset of Fashion-MNIST embedded in this program: 3,500 images (Xiao et al., arXiv 1708.07747; MIT licence). A run
//! with it needs no other files.

use cdl_core::prelude::*;

use super::idx::{FASHION_MNIST, IdxFile, labelled_images};

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
    about: "Fashion-MNIST subset embedded in this program: 250 training and 100 test images per class",
    citation: "Xiao et al., 2017, arXiv:1708.07747",
    config: EmbeddedConfig,
    build: build,
});

const TRAIN_IMAGES: &[u8] = include_bytes!("../../assets/fashion_mnist/train-images-idx3-ubyte.gz");
const TRAIN_LABELS: &[u8] = include_bytes!("../../assets/fashion_mnist/train-labels-idx1-ubyte.gz");
const TEST_IMAGES: &[u8] = include_bytes!("../../assets/fashion_mnist/t10k-images-idx3-ubyte.gz");
const TEST_LABELS: &[u8] = include_bytes!("../../assets/fashion_mnist/t10k-labels-idx1-ubyte.gz");

fn build(config: EmbeddedConfig, context: &StreamContext<'_>) -> Result<Box<dyn TaskStream>> {
    let file =
        |name: &str, bytes: &[u8]| IdxFile::new(format!("embedded:{name}-ubyte.gz").into(), bytes.into());
    let train =
        labelled_images(file("train-images-idx3", TRAIN_IMAGES)?, file("train-labels-idx1", TRAIN_LABELS)?)?;
    let test =
        labelled_images(file("t10k-images-idx3", TEST_IMAGES)?, file("t10k-labels-idx1", TEST_LABELS)?)?;
    let (train, test) = (Box::new(train), Box::new(test));
    let classes = FASHION_MNIST.lines().map(String::from).collect();
    Ok(Box::new(ImageStream::new("embedded", classes, train, test, &config.tasks, context)?))
}
