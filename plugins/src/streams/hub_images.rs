//! Image classification data sets in parquet files, from the Hugging Face Hub or a folder.

use cdl_core::prelude::*;

use crate::data::{
    shards::{self, DataSet, SplitNames, TEST_SPLITS},
    table::Columns,
};

/// Settings of `hub_images`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct HubImagesConfig {
    /// Data set on the hub, `hf:owner/name` or `hf:owner/name@revision`, or a folder with parquet files, relative to
    /// the working directory. `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` apply to the hub.
    pub path: String,
    /// Training split: a name or a pattern. A name selects files in a folder of this name, files whose names begin with
    /// it, or files named after the data set and the split, such as `pets-train.parquet`. A pattern selects files by
    /// their paths; `*` matches any text.
    pub train_split: String,
    /// Test split, a name or pattern like `train_split`. Default: the first that exists of `test`, `validation`,
    /// `valid` and `val`. Not read if `validation` holds out training images.
    pub test_split: Option<String>,
    /// Column of images: structs with a field `bytes`, or plain bytes. Default: the only column that the files declare
    /// as images; otherwise the only column of bytes; otherwise `image` or `img`.
    pub image_column: Option<String>,
    /// Column of labels: numbers or names. Default: the only column that the files declare as class labels; otherwise
    /// `label`.
    pub label_column: Option<String>,
    /// Decode every image once before the run begins, so that damaged images are reported at the start.
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
    about: "Any image classification data set in parquet files, from the Hugging Face Hub or a folder",
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
        None => TEST_SPLITS.to_vec(),
    };
    let columns = Columns { image: config.image_column.as_deref(), label: config.label_column.as_deref() };
    let HubImagesConfig { path, tasks, .. } = &config;
    let splits = SplitNames { train: &config.train_split, test: &test, held_out: tasks.validation.is_some() };
    let DataSet { classes, train, test } = shards::read(path, splits, columns, tasks.transform.exif)?;
    let name = format!("hub_images {path}");
    let stream = ImageStream::new(&name, classes, Box::new(train), Box::new(test), tasks, context)?;
    if config.verify {
        stream.verify()?;
    }
    Ok(Box::new(stream))
}
