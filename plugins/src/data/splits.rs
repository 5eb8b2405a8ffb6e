//! Streams of image folders that are split by lists, or by a stated draw where there is none.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    slice::from_ref,
};

use cdl_core::prelude::*;

use super::{
    class_folders::{Files, Folders, check_path, scan, split_folders},
    split_list::{self, Labels, in_order},
};

/// The settings that these streams share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SplitConfig {
    /// Folder with the images; the paths of split lists are looked up below it. Relative to the working directory.
    pub path: PathBuf,
    /// Training images: a text file with `.../CLASS/image.jpg LABEL` a line, or a YAML file with the lists `data` (paths)
    /// and `targets` (labels), as the published code has them. Labels set the order of the classes. Folders that a
    /// path begins with and that are not there, such as `data/imagenet-r`, are left out.
    pub train_list: Option<PathBuf>,
    /// Test images, likewise.
    pub test_list: Option<PathBuf>,
    /// Decode every image once before the run begins, so that a damaged one is found at once.
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

/// The settings of streams that have a split of their own where no list is given.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DrawnConfig {
    /// Without lists and without `path/{train,test}`: the draw of each class's images, in the order of their names, into
    /// 80 % for training and 20 % for testing. It does not follow the run's seed.
    pub split_seed: u64,
    /// Folder, lists, tasks, subsets and transforms.
    #[serde(flatten)]
    pub images: SplitConfig,
}

impl DrawnConfig {
    /// The stream `name` of these images.
    pub(crate) fn stream(&self, name: &str, context: &StreamContext<'_>) -> Result<Box<dyn TaskStream>> {
        self.images.stream(name, context, |path| Splits::drawn(path, self.split_seed))
    }
}

/// Images of both halves of a split, and the labels that lists gave to their classes.
#[derive(Default)]
pub(crate) struct Splits {
    train: Folders,
    test: Folders,
    labels: Labels,
}

impl SplitConfig {
    /// The stream `name` of these images, split by the lists in the settings or, without any, by `split`.
    pub(crate) fn stream(
        &self,
        name: &str,
        context: &StreamContext<'_>,
        split: impl FnOnce(&Path) -> Result<Splits>,
    ) -> Result<Box<dyn TaskStream>> {
        check_path(&self.path, "the images")?;
        let alone = |missing: &str, given: &str| {
            Err(Error::setting(missing, "", format!("expected together with `{given}`")))
        };
        let Splits { train, test, labels } = match (&self.train_list, &self.test_list) {
            (None, None) => split(&self.path)?,
            (Some(train), Some(test)) => Splits::read(&self.path, from_ref(train), from_ref(test))?,
            (Some(_), None) => return alone("test_list", "train_list"),
            (None, Some(_)) => return alone("train_list", "test_list"),
        };
        let names: BTreeSet<&String> = train.keys().chain(test.keys()).collect();
        let classes = in_order(name, names.into_iter().cloned().collect(), &labels)?;
        let [train, test] = [train, test].map(|half| Box::new(Files::new(&self.path, &half, &classes)));
        let name = format!("{name} {}", self.path.display());
        let stream = ImageStream::new(&name, classes, train, test, &self.tasks, context)?;
        if self.verify {
            stream.verify()?;
        }
        Ok(Box::new(stream))
    }
}

impl Splits {
    /// Reads the lists of both halves; several lists of one half are joined.
    pub(crate) fn read(root: &Path, train: &[PathBuf], test: &[PathBuf]) -> Result<Self> {
        let mut splits = Self::default();
        for (half, lists) in [(&mut splits.train, train), (&mut splits.test, test)] {
            for list in lists {
                split_list::read(root, list, half, &mut splits.labels)?;
            }
        }
        splits.check(root)?;
        Ok(splits)
    }

    /// Refuses images that are in both halves. An image that a half names twice counts twice, with a warning.
    fn check(&self, root: &Path) -> Result<()> {
        let images = |half: &'_ Folders| half.values().flatten().cloned().collect::<Vec<PathBuf>>();
        let (train, test) = (images(&self.train), images(&self.test));
        let distinct: BTreeSet<&PathBuf> = train.iter().collect();
        let mut shared = test.iter().filter(|file| distinct.contains(file));
        if let Some(first) = shared.next() {
            let more = shared.count();
            let reason =
                format!("is in both the training list and the test list, as are {more} other images");
            return Err(Error::data(first, reason));
        }
        let repeated = train.len() - distinct.len() + test.len() - test.iter().collect::<BTreeSet<_>>().len();
        if repeated > 0 {
            tracing::warn!(
                "{}: the lists name images more than once, {repeated} times in all",
                root.display()
            );
        }
        Ok(())
    }

    /// Reads `path/train/CLASS` and `path/test/CLASS` (or `val`, `valid`, `validation`).
    pub(crate) fn folders(path: &Path) -> Result<Self> {
        let Some([train, test]) = split_folders(path) else {
            let reason = "has no folders `train` and `test` (or `val`) with a folder for each class; `cdl data split` \
                          divides a folder of class folders into lists for `train_list` and `test_list`";
            return Err(Error::data(path, reason));
        };
        Ok(Self { train: scan(&train)?, test: scan(&test)?, labels: Labels::new() })
    }

    /// `path/{train,test}/CLASS` where there are such folders; otherwise the images of `path/CLASS`, of each class 80 %
    /// for training, drawn by `seed` from its images in the order of their names.
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

/// Draws `tests` of a class's items for testing: training and test items, each in the order in which they came.
pub(super) fn draw<T: Ord>(mut items: Vec<T>, class: &str, tests: usize, seed: u64) -> [Vec<T>; 2] {
    Rng::new(seed).derive(&format!("split, class {class}")).shuffle(&mut items);
    let mut test = items.split_off(items.len() - tests);
    items.sort();
    test.sort();
    [items, test]
}
