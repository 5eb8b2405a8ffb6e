//! CIFAR-10 and CIFAR-100: 60,000 colour images of 32 x 32 pixels in 10 or 100 classes. Reads every distributed format:
//! the binary version, the Python version (its pickles are parsed as data and never executed), and the parquet files of
//! the Hugging Face Hub.

use std::path::{Path, PathBuf};

use cdl_core::{prelude::*, system::files::without_byte_order_mark};

use crate::data::{
    Parsed,
    class_folders::{list, nearest_in},
    numpy::Batch,
    planes::Planes,
    read,
    shards::{self, DataSet, SplitNames},
    table::Columns,
};

/// Settings of `cifar10` and `cifar100`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CifarConfig {
    /// Folder with the data set, or the folder that contains it: the binary version (`cifar-100-binary`,
    /// `cifar-10-batches-bin`), the Python version (`cifar-100-python`, `cifar-10-batches-py`) or parquet files. A data
    /// set on the Hugging Face Hub is `hf:uoft-cs/cifar100` or `hf:uoft-cs/cifar10`, optionally with `@revision`.
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
/// Bytes of an image: all red values row by row, then all green, then all blue values.
const PIXELS: usize = 3 * SIDE * SIDE;

/// Differences between the two data sets.
struct Variant {
    name: &'static str,
    /// Files of training images, without the extension `.bin` of the binary version.
    train: &'static [&'static str],
    /// File of test images, without the extension `.bin` of the binary version.
    test: &'static str,
    binary: Version,
    python: Version,
    /// Bytes before an image in the binary version; the last is its label.
    label_bytes: usize,
    /// Column of labels in parquet files. In pickles, this name with `s` is the key of the labels, and with `_names`
    /// the key of the class names.
    label: &'static str,
    /// Class names, for folders without a file of class names.
    classes: &'static str,
}

/// Distributed version with files of images and one file of class names.
struct Version {
    folder: &'static str,
    /// File of class names.
    names: &'static str,
    /// Whether the files are pickles. Otherwise a file of images has records of label bytes and pixels, and the file of
    /// class names has one name per line.
    pickled: bool,
}

const CIFAR10: Variant = Variant {
    name: "cifar10",
    train: &["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"],
    test: "test_batch",
    binary: Version { folder: "cifar-10-batches-bin", names: "batches.meta.txt", pickled: false },
    python: Version { folder: "cifar-10-batches-py", names: "batches.meta", pickled: true },
    label_bytes: 1,
    label: "label",
    classes: "airplane automobile bird cat deer dog frog horse ship truck",
};

const CIFAR100: Variant = Variant {
    name: "cifar100",
    train: &["train"],
    test: "test",
    binary: Version { folder: "cifar-100-binary", names: "fine_label_names.txt", pickled: false },
    python: Version { folder: "cifar-100-python", names: "meta", pickled: true },
    label_bytes: 2,
    label: "fine_label",
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
    let (classes, train, test): (_, Box<dyn ImageSet>, Box<dyn ImageSet>) = if let Some((version, folder)) =
        variant.find(folder)
    {
        let train = variant.images(version, &folder, variant.train)?;
        let test = variant.images(version, &folder, &[variant.test])?;
        (variant.class_names(version, &folder)?, Box::new(train), Box::new(test))
    } else if path.starts_with("hf:") || has_parquet(folder) {
        let columns = Columns { image: Some("img"), label: Some(variant.label) };
        let splits = SplitNames { train: "train", test: &["test"], held_out: tasks.validation.is_some() };
        let DataSet { classes, train, test } = shards::read(&path, splits, columns, tasks.transform.exif)?;
        (classes, Box::new(train), Box::new(test))
    } else {
        return Err(variant.not_found(folder));
    };
    Ok(Box::new(ImageStream::new(&name, classes, train, test, &tasks, context)?))
}

impl Variant {
    /// Finds a version that exists, and its folder: inside `path`, or `path` itself.
    fn find(&self, path: &Path) -> Option<(&Version, PathBuf)> {
        let candidates = [&self.binary, &self.python]
            .map(|version| [(version, path.join(version.folder)), (version, path.into())]);
        candidates
            .into_iter()
            .flatten()
            .find(|(version, folder)| folder.join(version.file(self.test)).is_file())
    }

    /// Reads the images of all `files` of a version.
    fn images(&self, version: &Version, folder: &Path, files: &[&str]) -> Result<Planes> {
        let mut images = Planes { shape: [3, SIDE, SIDE], ..Planes::default() };
        for name in files {
            let file = folder.join(version.file(name));
            let bytes = read(&file)?;
            let add = if version.pickled { add_pickle } else { add_records };
            add(self, &bytes, &mut images).map_err(|reason| Error::data(&file, reason))?;
            images.files.push(DataRecord::of_bytes(&file, &bytes));
        }
        Ok(images)
    }

    /// Reads the class names. Without a file of class names, returns the standard ones.
    fn class_names(&self, version: &Version, folder: &Path) -> Result<Vec<String>> {
        let file = folder.join(version.names);
        if !file.exists() {
            return Ok(self.classes.split_whitespace().map(String::from).collect());
        }
        let bytes = read(&file)?;
        let names = || -> Parsed<Vec<String>> {
            if version.pickled {
                let batch = Batch::read(&bytes)?;
                return batch.strings(batch.entry(&format!("{}_names", self.label))?);
            }
            let text = std::str::from_utf8(without_byte_order_mark(&bytes))
                .map_err(|e| format!("is not text: {e}"))?;
            Ok(text.lines().map(str::trim).filter(|name| !name.is_empty()).map(String::from).collect())
        };
        names().map_err(|reason| Error::data(file, reason))
    }

    fn not_found(&self, folder: &Path) -> Error {
        let files = [&self.binary, &self.python];
        let files = files.map(|version| format!("`{}/{}`", version.folder, version.file(self.test)));
        let near = nearest_in(folder, self.python.folder);
        let near = near.map(|near| format!("; it has `{near}`")).unwrap_or_default();
        Error::data(folder, format!("contains neither {} nor parquet files{near}", files.join(" nor ")))
    }
}

impl Version {
    /// Returns the file name of the images `name`.
    fn file(&self, name: &str) -> String {
        if self.pickled { name.into() } else { format!("{name}.bin") }
    }
}

/// Adds a file of the binary version.
fn add_records(variant: &Variant, bytes: &[u8], images: &mut Planes) -> Parsed<()> {
    let record = variant.label_bytes + PIXELS;
    if bytes.is_empty() || !bytes.len().is_multiple_of(record) {
        return Err(format!("has {} bytes, not a multiple of {record}: truncated?", bytes.len()));
    }
    for record in bytes.chunks_exact(record) {
        let (labels, pixels) = record.split_at(variant.label_bytes);
        images.labels.extend(labels.last());
        images.pixels.extend(pixels);
    }
    Ok(())
}

/// Adds a file of the Python version: a dictionary with the array `data`, one row per image, and a list of labels.
fn add_pickle(variant: &Variant, bytes: &[u8], images: &mut Planes) -> Parsed<()> {
    let (batch, key) = (Batch::read(bytes)?, format!("{}s", variant.label));
    let data = batch.entry("data").and_then(|id| batch.array(id));
    let (shape, pixels) = data.map_err(|e| format!("`data`: {e}"))?;
    let labels = batch.entry(&key).and_then(|id| batch.ints(id)).map_err(|e| format!("`{key}`: {e}"))?;
    if shape != [labels.len(), PIXELS] {
        let expected =
            format!("expected {PIXELS} columns and one row for each of the {} labels", labels.len());
        return Err(format!("`data` has the shape {shape:?}; {expected}"));
    }
    images.pixels.extend(pixels.iter());
    for label in labels {
        images.labels.push(u8::try_from(label).map_err(|_| format!("label {label} is outside 0 to 255"))?);
    }
    Ok(())
}

/// Returns whether a folder or one of its direct subfolders contains a parquet file.
fn has_parquet(folder: &Path) -> bool {
    let list = |folder: &Path| list(folder).unwrap_or_default();
    let is_parquet = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "parquet");
    list(folder).iter().any(|path| is_parquet(path) || list(path).iter().any(is_parquet))
}
