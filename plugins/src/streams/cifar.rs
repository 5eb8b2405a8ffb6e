//! CIFAR-10 and CIFAR-100: 60,000 colour images of 32 x 32 pixels in 10 or 100 classes, in the forms in which they are
//! handed out: the binary version, the Python version (its pickles are read as data, nothing in them is run), and the
//! parquet files of the Hugging Face Hub.

use std::{
    borrow::Cow,
    path::{Path, PathBuf},
};

use cdl_core::{
    DataRecord, Error, ImageSet, ImageStream, Result, StreamContext, TaskSettings, TaskStream,
    error::nearest, image::RgbImage,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::data::{
    numpy::Batch,
    shards::{self, Splits},
    table::Columns,
};

/// Settings of `cifar10` and `cifar100`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CifarConfig {
    /// A folder with one of the data set's forms, or that form's own folder: the binary version (`cifar-100-binary`,
    /// `cifar-10-batches-bin`), the Python version (`cifar-100-python`, `cifar-10-batches-py`) or parquet files. Or the
    /// data set on the hub, `hf:uoft-cs/cifar100` or `hf:uoft-cs/cifar10`, with `@revision` at will.
    pub path: String,
    /// Tasks, subsets and transforms.
    #[serde(flatten)]
    pub tasks: TaskSettings,
}

cdl_core::register!(Stream {
    name: "cifar10",
    about: "CIFAR-10 as binary files, Python pickles or parquet, from a folder or the Hugging Face Hub",
    citation: "Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
    source: "hf:uoft-cs/cifar10",
    config: CifarConfig,
    build: |config, context: &_| build(&CIFAR10, config, context),
});

cdl_core::register!(Stream {
    name: "cifar100",
    about: "CIFAR-100 as binary files, Python pickles or parquet, from a folder or the Hugging Face Hub",
    citation: "Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
    source: "hf:uoft-cs/cifar100",
    config: CifarConfig,
    build: |config, context: &_| build(&CIFAR100, config, context),
});

/// Side of an image.
const SIDE: usize = 32;
/// Bytes of an image: all red values row by row, then all green ones, then all blue ones.
const PIXELS: usize = 3 * SIDE * SIDE;

/// What tells the two data sets apart.
struct Variant {
    name: &'static str,
    binary: Form,
    python: Form,
    /// Bytes before an image in the binary version; the last is its label.
    labels: usize,
    /// Keys of labels and class names in the pickles; the former is nearly the column's name in parquet.
    label_key: &'static str,
    names_key: &'static str,
    label_column: &'static str,
    classes: &'static str,
}

/// Files of a form.
struct Form {
    folder: &'static str,
    train: &'static [&'static str],
    test: &'static str,
    names: &'static str,
}

const CIFAR10: Variant = Variant {
    name: "cifar10",
    binary: Form {
        folder: "cifar-10-batches-bin",
        train: &[
            "data_batch_1.bin",
            "data_batch_2.bin",
            "data_batch_3.bin",
            "data_batch_4.bin",
            "data_batch_5.bin",
        ],
        test: "test_batch.bin",
        names: "batches.meta.txt",
    },
    python: Form {
        folder: "cifar-10-batches-py",
        train: &["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"],
        test: "test_batch",
        names: "batches.meta",
    },
    labels: 1,
    label_key: "labels",
    names_key: "label_names",
    label_column: "label",
    classes: "airplane automobile bird cat deer dog frog horse ship truck",
};

const CIFAR100: Variant = Variant {
    name: "cifar100",
    binary: Form {
        folder: "cifar-100-binary",
        train: &["train.bin"],
        test: "test.bin",
        names: "fine_label_names.txt",
    },
    python: Form { folder: "cifar-100-python", train: &["train"], test: "test", names: "meta" },
    labels: 2,
    label_key: "fine_labels",
    names_key: "fine_label_names",
    label_column: "fine_label",
    classes: "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can \
              castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin \
              elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard \
              lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear \
              pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal \
              shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank \
              telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm",
};

fn build(variant: &Variant, config: CifarConfig, context: &StreamContext<'_>) -> Result<Box<dyn TaskStream>> {
    let CifarConfig { path, tasks } = config;
    if path.is_empty() {
        let expected = format!("expected a folder with {} or `hf:uoft-cs/{}`", variant.name, variant.name);
        return Err(Error::setting("path", "", expected));
    }
    let name = format!("{} {path}", variant.name);
    let folder = Path::new(&path);
    let (binary, python) = (variant.binary.find(folder), variant.python.find(folder));
    let (classes, train, test): (_, Box<dyn ImageSet>, Box<dyn ImageSet>) = if let Some(folder) = binary {
        let read = |images: &mut Images, file: &Path| images.add_binary(file, variant.labels);
        let (train, test) = variant.binary.read(&folder, read)?;
        (variant.names_in_text(&folder)?, Box::new(train), Box::new(test))
    } else if let Some(folder) = python {
        let read = |images: &mut Images, file: &Path| images.add_pickle(file, variant.label_key);
        let (train, test) = variant.python.read(&folder, read)?;
        (variant.names_in_pickle(&folder)?, Box::new(train), Box::new(test))
    } else if path.starts_with("hf:") || has_parquet(folder) {
        let columns = Columns { image: Some("img"), label: Some(variant.label_column) };
        let Splits { classes, train, test } = shards::read(&path, "train", &["test"], columns)?;
        (classes, Box::new(train), Box::new(test))
    } else {
        return Err(variant.not_found(folder));
    };
    Ok(Box::new(ImageStream::new(&name, classes, train, test, &tasks, context)?))
}

impl Form {
    /// The folder of this form: below `path`, or `path` itself.
    fn find(&self, path: &Path) -> Option<PathBuf> {
        let folders = [path.join(self.folder), path.into()];
        folders.into_iter().find(|folder| folder.join(self.test).is_file())
    }

    /// Training and test images.
    fn read(
        &self,
        folder: &Path,
        read: impl Fn(&mut Images, &Path) -> Result<()>,
    ) -> Result<(Images, Images)> {
        let (mut train, mut test) = (Images::default(), Images::default());
        for file in self.train {
            read(&mut train, &folder.join(file))?;
        }
        read(&mut test, &folder.join(self.test))?;
        Ok((train, test))
    }
}

impl Variant {
    fn built_in(&self) -> Vec<String> {
        self.classes.split_whitespace().map(String::from).collect()
    }

    /// Class names of the binary version: a line each. They are known without that file.
    fn names_in_text(&self, folder: &Path) -> Result<Vec<String>> {
        let file = folder.join(self.binary.names);
        if !file.exists() {
            return Ok(self.built_in());
        }
        let text = String::from_utf8(bytes_of(&file)?)
            .map_err(|e| Error::Data { file, reason: format!("is not text: {e}") })?;
        Ok(text.lines().map(str::trim).filter(|name| !name.is_empty()).map(String::from).collect())
    }

    /// Class names of the Python version. They are known without that file.
    fn names_in_pickle(&self, folder: &Path) -> Result<Vec<String>> {
        let file = folder.join(self.python.names);
        if !file.exists() {
            return Ok(self.built_in());
        }
        let bytes = bytes_of(&file)?;
        let names = Batch::read(&bytes).and_then(|batch| batch.strings(batch.entry(self.names_key)?));
        names.map_err(|reason| Error::Data { file, reason })
    }

    fn not_found(&self, folder: &Path) -> Error {
        let forms = [&self.binary, &self.python].map(|form| format!("`{}/{}`", form.folder, form.test));
        let there: Vec<String> = std::fs::read_dir(folder)
            .map(|entries| entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
            .unwrap_or_default();
        let near = nearest(self.python.folder, there.iter().map(String::as_str));
        let near = near.map(|near| format!("; it has `{near}`")).unwrap_or_default();
        let reason = format!("has neither {} nor parquet files{near}", forms.join(" nor "));
        Error::Data { file: folder.into(), reason }
    }
}

/// Whether there is a parquet file in a folder or the folders in it.
fn has_parquet(folder: &Path) -> bool {
    let list = |folder: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(folder)
            .map(|all| all.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default()
    };
    let is_parquet = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "parquet");
    list(folder).iter().any(|path| is_parquet(path) || list(path).iter().any(is_parquet))
}

fn bytes_of(file: &Path) -> Result<Vec<u8>> {
    std::fs::read(file).map_err(|e| Error::Data { file: file.into(), reason: format!("cannot be read: {e}") })
}

/// Images as the files have them, channel by channel.
#[derive(Default)]
struct Images {
    pixels: Vec<u8>,
    labels: Vec<u8>,
    files: Vec<DataRecord>,
}

impl Images {
    /// Adds a file of the binary version: records of `labels` label bytes, of which the last counts, and an image.
    fn add_binary(&mut self, file: &Path, labels: usize) -> Result<()> {
        let bytes = bytes_of(file)?;
        let record = labels + PIXELS;
        if bytes.is_empty() || !bytes.len().is_multiple_of(record) {
            let reason = format!("{} bytes, not whole records of {record}: truncated?", bytes.len());
            return Err(Error::Data { file: file.into(), reason });
        }
        self.files.push(DataRecord::of_bytes(file, &bytes));
        for record in bytes.chunks_exact(record) {
            self.labels.push(record[labels - 1]);
            self.pixels.extend(&record[labels..]);
        }
        Ok(())
    }

    /// Adds a file of the Python version: a dictionary with the array `data`, a row for each image, and a list of labels.
    fn add_pickle(&mut self, file: &Path, label_key: &str) -> Result<()> {
        let bytes = bytes_of(file)?;
        let (pixels, labels) =
            unpickle(&bytes, label_key).map_err(|reason| Error::Data { file: file.into(), reason })?;
        self.pixels.extend(pixels.iter());
        self.files.push(DataRecord::of_bytes(file, &bytes));
        self.labels.extend(labels);
        Ok(())
    }
}

/// Pixels and labels of a pickled batch.
fn unpickle<'a>(bytes: &'a [u8], label_key: &str) -> std::result::Result<(Cow<'a, [u8]>, Vec<u8>), String> {
    let batch = Batch::read(bytes)?;
    let (shape, pixels) =
        batch.entry("data").and_then(|id| batch.array(id)).map_err(|e| format!("`data`: {e}"))?;
    let labels =
        batch.entry(label_key).and_then(|id| batch.ints(id)).map_err(|e| format!("`{label_key}`: {e}"))?;
    if shape != [labels.len(), PIXELS] {
        let expected = format!("expected {PIXELS} columns and a row for each of the {} labels", labels.len());
        return Err(format!("`data` has the shape {shape:?}; {expected}"));
    }
    let label = |label| u8::try_from(label).map_err(|_| format!("label {label} is none"));
    Ok((pixels, labels.into_iter().map(label).collect::<std::result::Result<_, _>>()?))
}

impl ImageSet for Images {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn label(&self, index: usize) -> usize {
        self.labels[index].into()
    }

    fn image(&self, index: usize) -> Result<RgbImage> {
        let planes = &self.pixels[index * PIXELS..(index + 1) * PIXELS];
        Ok(RgbImage::from_fn(SIDE as u32, SIDE as u32, |x, y| {
            let at = y as usize * SIDE + x as usize;
            [planes[at], planes[SIDE * SIDE + at], planes[2 * SIDE * SIDE + at]].into()
        }))
    }

    fn files(&self) -> Result<Vec<DataRecord>> {
        Ok(self.files.clone())
    }

    fn id(&self, index: usize) -> String {
        index.to_string()
    }
}
