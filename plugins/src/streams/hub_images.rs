//! Any image-classification data set in parquet files, on the Hugging Face Hub or in a folder.

use cdl_core::prelude::*;

use crate::data::{shards, table::Columns};

/// Settings of `hub_images`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct HubImagesConfig {
    /// `hf:owner/name` or `hf:owner/name@revision`, a data set on the hub (with its cache, `HF_HOME`, `HF_ENDPOINT`,
    /// `HF_TOKEN`, `HF_HUB_OFFLINE`), or a folder with its parquet files, relative to the working directory.
    pub path: String,
    /// Training images: a split's name, which begins the names of its files or is that of their folder, or a pattern for
    /// the files' paths in which `*` stands for any text.
    pub train_split: String,
    /// Test images, likewise. Default: `test`, or without one `validation`, `valid` or `val`.
    pub test_split: Option<String>,
    /// The column of images, structs with a field `bytes` or plain bytes. Default: the only one of this kind.
    pub image_column: Option<String>,
    /// The column of labels, numbers or names. Default: the only one that the files call a class label, or `label`.
    pub label_column: Option<String>,
    /// Decode every image once before the run begins, so that a damaged one is found at once.
    pub verify: bool,
    /// Tasks, subsets and transforms.
    #[serde(flatten)]
    pub tasks: TaskSettings,
}

impl Default for HubImagesConfig {
    fn default() -> Self {
        Self {
            path: String::new(),
            train_split: "train".into(),
            test_split: None,
            image_column: None,
            label_column: None,
            verify: true,
            tasks: TaskSettings::default(),
        }
    }
}

cdl_core::register!(Stream {
    name: "hub_images",
    about: "Any image-classification data set in parquet, from the Hugging Face Hub or a folder",
    citation: "format of the `datasets` library: Lhoest et al., EMNLP 2021, arXiv:2109.02846",
    config: HubImagesConfig,
    build: build,
});

fn build(config: HubImagesConfig, context: &StreamContext<'_>) -> Result<Box<dyn TaskStream>> {
    if config.path.is_empty() {
        return Err(Error::setting("path", "", "expected `hf:owner/name` or a folder with parquet files"));
    }
    let test = match &config.test_split {
        Some(split) => vec![split.as_str()],
        None => vec!["test", "validation", "valid", "val"],
    };
    let columns = Columns { image: config.image_column.as_deref(), label: config.label_column.as_deref() };
    let (classes, train, test) = shards::read(&config.path, &config.train_split, &test, columns)?;
    let name = format!("hub_images {}", config.path);
    let stream = ImageStream::new(&name, classes, Box::new(train), Box::new(test), &config.tasks, context)?;
    if config.verify {
        stream.verify()?;
    }
    Ok(Box::new(stream))
}
