//! Image files sorted into one folder per class.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    path::{Path, PathBuf},
};

use cdl_core::{
    error::nearest,
    prelude::*,
    transform::{Exif, decode},
};

use super::{read, unreadable};

/// Image files by class.
pub(crate) type Folders = BTreeMap<String, Vec<PathBuf>>;

/// Extensions of image files. Files with other extensions are ignored.
const EXTENSIONS: [&str; 12] =
    ["png", "jpg", "jpeg", "jpe", "jfif", "bmp", "gif", "webp", "tif", "tiff", "ppm", "pgm"];

/// Names of folders with test images, in order of preference.
const TEST_FOLDERS: [&str; 4] = ["test", "val", "valid", "validation"];

/// Checks that a stream's `path` is a folder. `what` names the expected contents, for the error message.
pub(crate) fn check_path(path: &Path, what: &str) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let problem = if path.as_os_str().is_empty() { "" } else { "; no such folder" };
    Err(Error::setting("path", path.display(), format!("expected the folder with {what}{problem}")))
}

/// Returns the folders `train` and `test` in `folder`, if both exist. `val`, `valid` or `validation` replaces a missing
/// `test`.
pub(crate) fn split_folders(folder: &Path) -> Option<[PathBuf; 2]> {
    let train = Some(folder.join("train")).filter(|train| train.is_dir())?;
    let test = TEST_FOLDERS.map(|name| folder.join(name)).into_iter().find(|test| test.is_dir())?;
    Some([train, test])
}

/// Lists the image files of each class folder in sorted order. An empty class folder gives an empty list.
pub(crate) fn scan(folder: &Path) -> Result<Folders> {
    let folders: Vec<PathBuf> = list(folder)?.into_iter().filter(|path| path.is_dir()).collect();
    let (mut classes, mut others) = (Folders::new(), BTreeMap::new());
    for class in &folders {
        let files = FolderFiles::list(class)?;
        files
            .others
            .into_iter()
            .for_each(|(extension, count)| *others.entry(extension).or_default() += count);
        if classes.insert(name_of(class), files.images).is_some() {
            let reason =
                format!("is a second class folder whose name is shown as `{}`; rename it", name_of(class));
            return Err(Error::data(class, reason));
        }
    }
    if !others.is_empty() {
        tracing::warn!("{}: {}", folder.display(), describe_skipped(&others));
    }
    let in_class = |(class, image): &(&PathBuf, &PathBuf)| image.parent() == Some(class.as_path());
    let pairs = folders.iter().zip(folders.iter().map(|class| classes.get(&name_of(class))));
    let images =
        pairs.flat_map(|(class, images)| images.into_iter().flatten().map(move |image| (class, image)));
    let nested: Vec<_> = images.filter(|pair| !in_class(pair)).collect();
    if let Some((class, image)) = nested.first().filter(|_| folders.len() > 1) {
        tracing::warn!(
            "{}: {} of the images are in subfolders of class folders, such as {}, whose class is `{}`",
            folder.display(),
            nested.len(),
            image.display(),
            name_of(class),
        );
    }
    let [class] = &folders[..] else {
        let none = || Error::data(folder, "has no class folders");
        return if classes.is_empty() { Err(none()) } else { Ok(classes) };
    };
    // A common error: `folder` is the parent of the data set, as after unpacking an archive into a folder of its name.
    let images: Vec<&PathBuf> = classes.values().flatten().collect();
    if !images.is_empty() && images.iter().all(|image| image.parent() != Some(class)) {
        let (name, class) = (name_of(class), class.display());
        return Err(Error::data(
            folder,
            format!(
                "has the single class folder `{name}`, whose images are all in subfolders; expected a folder for each \
                 class: did you mean {class}?"
            ),
        ));
    }
    Ok(classes)
}

/// Files in a folder and its subfolders, without hidden files and folders.
#[derive(Debug, Default)]
pub struct FolderFiles {
    /// Image files, sorted within each folder.
    pub images: Vec<PathBuf>,
    /// Numbers of files without an image extension, by extension.
    pub others: BTreeMap<String, usize>,
}

/// Describes the files that are skipped because of their extensions.
pub fn describe_skipped(others: &BTreeMap<String, usize>) -> String {
    let named = |(extension, count): (&String, &usize)| match extension.is_empty() {
        true => format!("{count} without extension"),
        false => format!("{count} .{extension}"),
    };
    let kinds: Vec<String> = others.iter().take(5).map(named).collect();
    let more = if others.len() > kinds.len() { ", ..." } else { "" };
    let (count, kinds) = (others.values().sum::<usize>(), kinds.join(", "));
    format!("skipped files without an image extension: {count} ({kinds}{more})")
}

impl FolderFiles {
    /// Lists the files in `folder` and its subfolders.
    pub fn list(folder: &Path) -> Result<Self> {
        let mut files = Self::default();
        files.collect(folder, &mut HashSet::new())?;
        Ok(files)
    }

    /// Adds the files in `folder` and its subfolders, except the folders in `listed`.
    fn collect(&mut self, folder: &Path, listed: &mut HashSet<PathBuf>) -> Result<()> {
        // Symbolic links to a folder above, or many links to one folder, would be followed without end.
        if !listed.insert(folder.canonicalize().map_err(unreadable(folder))?) {
            return Ok(());
        }
        for path in list(folder)? {
            let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
            if path.is_dir() {
                self.collect(&path, listed)?;
            } else if EXTENSIONS.contains(&extension.as_str()) {
                self.images.push(path);
            } else {
                *self.others.entry(extension).or_default() += 1;
            }
        }
        Ok(())
    }
}

/// Lists the entries of a folder in order of their names, without hidden ones.
pub(crate) fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).and_then(|all| all.map(|entry| Ok(entry?.path())).collect());
    let mut paths: Vec<PathBuf> = entries.map_err(unreadable(folder))?;
    paths.retain(|path| !name_of(path).starts_with('.'));
    paths.sort();
    Ok(paths)
}

/// Returns the last component of a path.
pub(crate) fn name_of(path: &Path) -> String {
    printable(Path::new(path.file_name().unwrap_or_default()))
}

/// Returns a path as text. Bytes that are not UTF-8 are written as `\xE9`, so that distinct names stay distinct.
pub(crate) fn printable(path: &Path) -> String {
    let mut text = String::new();
    for chunk in path.as_os_str().as_encoded_bytes().utf8_chunks() {
        text += chunk.valid();
        chunk.invalid().iter().for_each(|byte| text += &format!("\\x{byte:02X}"));
    }
    text
}

/// Returns the entry of `folder` whose name is nearest to `name`, for error messages.
pub(crate) fn nearest_in(folder: &Path, name: &str) -> Option<String> {
    let names: Vec<String> = list(folder).unwrap_or_default().iter().map(|path| name_of(path)).collect();
    nearest(name, names.iter().map(String::as_str))
}

/// Decodes an image file.
pub(crate) fn image(file: &Path, exif: Exif) -> Result<RgbImage> {
    decode(&read(file)?, exif).map_err(|e| Error::data(file, format!("is not a readable image: {e}")))
}

/// Image files with their labels.
pub(crate) struct Files {
    root: PathBuf,
    files: Vec<(PathBuf, usize)>,
    exif: Exif,
}

impl Files {
    /// Labels the files of `folders` by the position of their class in `classes`. A file's id is its path from `root`.
    pub(crate) fn new(root: &Path, folders: &Folders, classes: &[String], exif: Exif) -> Self {
        let mut files = Vec::new();
        for (label, class) in classes.iter().enumerate() {
            files.extend(folders.get(class).into_iter().flatten().map(|file| (file.clone(), label)));
        }
        Self { root: root.into(), files, exif }
    }
}

impl ImageSet for Files {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn label(&self, index: usize) -> usize {
        self.files[index].1
    }

    fn image(&self, index: usize) -> Result<RgbImage> {
        image(&self.files[index].0, self.exif)
    }

    fn files(&self) -> Result<Vec<DataRecord>> {
        Ok(vec![DataRecord::of_files(&self.root, self.files.iter().map(|(file, _)| file))?])
    }

    fn id(&self, index: usize) -> String {
        let file = &self.files[index].0;
        printable(file.strip_prefix(&self.root).unwrap_or(file))
    }
}
