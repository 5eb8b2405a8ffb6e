//! Streams of image folders, split by lists or, without lists, by a seeded draw.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    slice::from_ref,
};

use cdl_core::prelude::*;

use super::{
    class_folders::{Files, Folders, check_path, scan, split_folders},
    split_list::{self, Labels, ListedImages, in_order},
};

/// Settings of streams that read folders of images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SplitConfig {
    /// Folder with the images, relative to the working directory. Paths in split lists are relative to this folder.
    /// `image_folder` without lists reads `path/train/CLASS` and `path/test/CLASS` (or `val`, `valid`, `validation`).
    pub path: PathBuf,
    /// List of training images: a text file with lines `.../CLASS/image.jpg LABEL`, or a YAML file with the lists
    /// `data` (paths) and `targets` (labels), the format of the published code. Labels set the order of the classes.
    /// If no file has a listed path, leading folders such as `data/imagenet-r` are dropped. Requires `test_list`.
    pub train_list: Option<PathBuf>,
    /// List of test images, in the format of `train_list`. Requires `train_list`.
    pub test_list: Option<PathBuf>,
    /// Decode every image once before the run begins, so that damaged images are reported at the start.
    pub verify: bool,
    /// Tasks, subsets and transforms.
    #[serde(flatten)]
    pub tasks: TaskSettings,
}

impl Default for SplitConfig {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            train_list: None,
            test_list: None,
            verify: true,
            tasks: TaskSettings::default(),
        }
    }
}

/// Settings of streams that draw a train/test split if no lists are given.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct RandomSplitConfig {
    /// Seed of the split that is drawn if there are no lists and no folders `path/train` and `path/test`: 80 % of the
    /// images of each folder `path/CLASS` for training, 20 % for testing. The draw is independent of the run's seed.
    pub split_seed: u64,
    /// Folder, lists, tasks, subsets and transforms.
    #[serde(flatten)]
    pub images: SplitConfig,
}

impl RandomSplitConfig {
    /// Builds the stream `name` of these images.
    pub(crate) fn stream(&self, name: &str, context: &StreamContext<'_>) -> Result<Box<dyn TaskStream>> {
        self.images.stream(name, context, |path| Splits::drawn(path, self.split_seed))
    }
}

/// Training and test images, and the labels that lists assign to their classes.
#[derive(Default)]
pub(crate) struct Splits {
    train: Folders,
    test: Folders,
    labels: Labels,
}

impl SplitConfig {
    /// Builds the stream `name` of these images, split by the lists in the settings or, without lists, by `split`.
    pub(crate) fn stream(
        &self,
        name: &str,
        context: &StreamContext<'_>,
        split: impl FnOnce(&Path) -> Result<Splits>,
    ) -> Result<Box<dyn TaskStream>> {
        check_path(&self.path, "the images")?;
        let incomplete = |missing: &str, given: &str| {
            Err(Error::setting(missing, "", format!("expected together with `{given}`")))
        };
        let Splits { train, test, labels } = match (&self.train_list, &self.test_list) {
            (None, None) => split(&self.path)?,
            (Some(train), Some(test)) => Splits::read(&self.path, from_ref(train), from_ref(test))?,
            (Some(_), None) => return incomplete("test_list", "train_list"),
            (None, Some(_)) => return incomplete("train_list", "test_list"),
        };
        let names: BTreeSet<&String> = train.keys().chain(test.keys()).collect();
        let classes = in_order(name, names.into_iter().cloned().collect(), &labels)?;
        let exif = self.tasks.transform.exif;
        let [train, test] = [train, test].map(|half| Box::new(Files::new(&self.path, &half, &classes, exif)));
        let name = format!("{name} {}", self.path.display());
        let stream = ImageStream::new(&name, classes, train, test, &self.tasks, context)?;
        if self.verify {
            stream.verify()?;
        }
        Ok(Box::new(stream))
    }
}

impl Splits {
    /// Reads the training and test lists; several lists of one kind are joined.
    pub(crate) fn read(root: &Path, train: &[PathBuf], test: &[PathBuf]) -> Result<Self> {
        let mut labels = Labels::new();
        let mut read = |lists: &[PathBuf]| {
            let mut images = ListedImages::default();
            lists.iter().try_for_each(|list| split_list::read(root, list, &mut images, &mut labels))?;
            Ok::<_, Error>(images)
        };
        let (train, test) = (read(train)?, read(test)?);
        let mut shared = test.classes.values().flatten().filter(|image| train.all.contains(*image));
        if let Some(first) = shared.next() {
            let more = shared.count();
            let more = match more {
                0 => String::new(),
                1 => " (and 1 more image)".into(),
                more => format!(" (and {more} more images)"),
            };
            let reason = format!("is in both the training list and the test list{more}");
            return Err(Error::data(first, reason));
        }
        Ok(Self { train: train.classes, test: test.classes, labels })
    }

    /// Reads the folders `path/train/CLASS` and `path/test/CLASS` (or `val`, `valid`, `validation`).
    pub(crate) fn folders(path: &Path) -> Result<Self> {
        let Some([train, test]) = split_folders(path) else {
            let quoted = format!("{path:?}");
            let shown = if quoted.contains([' ', '\\']) { quoted } else { path.display().to_string() };
            return Err(Error::data(
                path,
                format!(
                    "has no folders `train` and `test` (or `val`) with a folder for each class; to split a folder of class \
                     folders, run `cdl data split {} --out splits`, then set `train_list = \"splits/train.txt\"` and \
                     `test_list = \"splits/test.txt\"`",
                    shown
                ),
            ));
        };
        Ok(Self { train: scan(&train)?, test: scan(&test)?, labels: Labels::new() })
    }

    /// Reads the folders `path/{train,test}/CLASS` if they exist. Otherwise draws 80 % of the images of each
    /// `path/CLASS` for training by `seed`, from the images in the order of their names.
    pub(crate) fn drawn(path: &Path, seed: u64) -> Result<Self> {
        if split_folders(path).is_some() {
            return Self::folders(path);
        }
        let mut splits = Self::default();
        for (class, files) in scan(path)? {
            let tests = files.len() / 5;
            let [train, test] = draw(files, &class, tests, seed);
            splits.train.insert(class.clone(), train);
            splits.test.insert(class, test);
        }
        Ok(splits)
    }
}

/// Draws `tests` of a class's items for testing. Returns training and test items, each in sorted order.
pub(super) fn draw<T: Ord>(mut items: Vec<T>, class: &str, tests: usize, seed: u64) -> [Vec<T>; 2] {
    Rng::new(seed).derive(&format!("split, class {class}")).shuffle(&mut items);
    let mut test = items.split_off(items.len() - tests);
    items.sort();
    test.sort();
    [items, test]
}
