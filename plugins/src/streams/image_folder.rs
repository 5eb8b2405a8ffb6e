//! Images in one folder for each class, split by folders or by lists.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use cdl_core::{
    Error, ImageSet, ImageStream, Result, StreamContext, TaskSettings, TaskStream, image::RgbImage,
    transform::decode,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Settings of `image_folder`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ImageFolderConfig {
    /// Folder with `train/CLASS/...` and `test/CLASS/...`; with split lists, the folder that their paths start from.
    /// Relative to the working directory.
    pub path: PathBuf,
    /// File with the training images, one a line: `.../CLASS/image.png`, optionally followed by a label
    /// (a number). Labels, where all classes have one, set the order of the classes; otherwise their names do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_list: Option<PathBuf>,
    /// File with the test images, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_list: Option<PathBuf>,
    /// Decode every image once before the run begins, so that a damaged one is found at once.
    pub verify: bool,
    /// Tasks, subsets and transforms.
    #[serde(flatten)]
    pub tasks: TaskSettings,
}

impl Default for ImageFolderConfig {
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

cdl_core::register!(Stream {
    name: "image_folder",
    about: "Images in one folder for each class, split by train/ and test/ folders or by lists",
    citation: "layout of torchvision's ImageFolder",
    config: ImageFolderConfig,
    build: build,
});

/// Image files by class.
type Folders = BTreeMap<String, Vec<PathBuf>>;
/// Labels by class.
type Labels = BTreeMap<String, usize>;

/// Extensions that count as images in a folder; others are passed over.
const EXTENSIONS: [&str; 10] = ["png", "jpg", "jpeg", "bmp", "gif", "webp", "tif", "tiff", "ppm", "pgm"];

fn build(config: ImageFolderConfig, context: &StreamContext<'_>) -> Result<Box<dyn TaskStream>> {
    let root = &config.path;
    if root.as_os_str().is_empty() {
        return Err(Error::setting("path", "", "expected a folder"));
    }
    let mut labels = Labels::new();
    let (train, test) = match (&config.train_list, &config.test_list) {
        (None, None) => (scan(&root.join("train"))?, scan(&root.join("test"))?),
        (Some(train), Some(test)) => {
            (read_list(root, train, &mut labels)?, read_list(root, test, &mut labels)?)
        }
        (Some(_), None) => {
            return Err(Error::setting("test_list", "", "expected together with `train_list`"));
        }
        (None, Some(_)) => {
            return Err(Error::setting("train_list", "", "expected together with `test_list`"));
        }
    };
    let names: BTreeSet<&String> = train.keys().chain(test.keys()).collect();
    let classes = in_order(names.into_iter().cloned().collect(), &labels)?;
    let gather = |folders: &Folders| -> Box<dyn ImageSet> {
        let mut files = Vec::new();
        for (label, class) in classes.iter().enumerate() {
            files.extend(folders.get(class).into_iter().flatten().map(|file| (file.clone(), label)));
        }
        Box::new(Files { root: root.clone(), files })
    };
    let name = format!("image_folder {}", root.display());
    let stream =
        ImageStream::new(&name, classes.clone(), gather(&train), gather(&test), &config.tasks, context)?;
    if config.verify {
        stream.verify()?;
    }
    Ok(Box::new(stream))
}

/// Image files by class folder, sorted; an empty class folder stays in as an empty list.
fn scan(folder: &Path) -> Result<Folders> {
    let mut classes = Folders::new();
    for class in list(folder)? {
        if class.is_dir() {
            let mut files = Vec::new();
            collect(&class, &mut files)?;
            let name = class.file_name().unwrap_or_default().to_string_lossy().into_owned();
            classes.insert(name, files);
        }
    }
    if classes.is_empty() {
        return Err(Error::Data { file: folder.into(), reason: "has no class folders".into() });
    }
    Ok(classes)
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for path in list(folder)? {
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        if path.is_dir() {
            collect(&path, files)?;
        } else if EXTENSIONS.contains(&extension.as_str()) {
            files.push(path);
        }
    }
    Ok(())
}

/// Entries of a folder in name order, hidden ones left out.
fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let fail =
        |e: std::io::Error| Error::Data { file: folder.into(), reason: format!("cannot be read: {e}") };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if !entry.file_name().to_string_lossy().starts_with('.') {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

/// Files of a split list by class, the folder that holds a file, and the labels that the list gives to classes.
fn read_list(root: &Path, file: &Path, labels: &mut Labels) -> Result<Folders> {
    let fail = |reason: String| Error::Data { file: file.into(), reason };
    let text = std::fs::read_to_string(file).map_err(|e| fail(format!("cannot be read: {e}")))?;
    let mut classes = Folders::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let number = number + 1;
        let line = line.trim();
        // Names may hold spaces; only a number at the end is a label.
        let (path, label) = match line.rsplit_once(char::is_whitespace) {
            Some((path, label)) => match label.parse::<usize>() {
                Ok(label) => (Path::new(path.trim_end()), Some(label)),
                Err(_) => (Path::new(line), None),
            },
            None => (Path::new(line), None),
        };
        let Some(class) =
            path.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned())
        else {
            return Err(fail(format!("line {number}: `{}` has no class folder", path.display())));
        };
        if !root.join(path).is_file() {
            return Err(fail(format!("line {number}: no file `{}`", root.join(path).display())));
        }
        if let Some(label) = label {
            let first = *labels.entry(class.clone()).or_insert(label);
            if first != label {
                return Err(fail(format!(
                    "line {number}: label {label}, but {first} earlier for class `{class}`"
                )));
            }
        }
        classes.entry(class).or_default().push(root.join(path));
    }
    if classes.is_empty() {
        return Err(fail("names no images".into()));
    }
    Ok(classes)
}

/// Classes in the order of their labels, if the lists label them all, else of their names.
fn in_order(mut classes: Vec<String>, labels: &Labels) -> Result<Vec<String>> {
    if classes.iter().all(|class| labels.contains_key(class)) {
        classes.sort_by_key(|class| labels[class]);
        if let Some(pair) = classes.windows(2).find(|pair| labels[&pair[0]] == labels[&pair[1]]) {
            let reason =
                format!("classes `{}` and `{}` have the same label {}", pair[0], pair[1], labels[&pair[0]]);
            return Err(Error::Tasks(format!("image_folder: {reason}")));
        }
    }
    Ok(classes)
}

/// Image files with their labels.
struct Files {
    root: PathBuf,
    files: Vec<(PathBuf, usize)>,
}

impl ImageSet for Files {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn label(&self, index: usize) -> usize {
        self.files[index].1
    }

    fn image(&self, index: usize) -> Result<RgbImage> {
        let file = &self.files[index].0;
        let fail = |reason: String| Error::Data { file: file.clone(), reason };
        let bytes = std::fs::read(file).map_err(|e| fail(format!("cannot be read: {e}")))?;
        decode(&bytes).map_err(|e| fail(format!("is not a readable image: {e}")))
    }

    fn id(&self, index: usize) -> String {
        let file = &self.files[index].0;
        file.strip_prefix(&self.root).unwrap_or(file).display().to_string()
    }
}
