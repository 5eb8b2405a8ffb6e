//! Image files in one folder for each class.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use cdl_core::{error::nearest, prelude::*, transform::decode};

use super::{read, unreadable};

/// Image files by class.
pub(crate) type Folders = BTreeMap<String, Vec<PathBuf>>;

/// Extensions that count as images in a folder; others are passed over.
const EXTENSIONS: [&str; 12] =
    ["png", "jpg", "jpeg", "jpe", "jfif", "bmp", "gif", "webp", "tif", "tiff", "ppm", "pgm"];

/// Names of folders with test images, in the order in which they are looked for.
const TEST_FOLDERS: [&str; 4] = ["test", "val", "valid", "validation"];

/// Refuses a stream's `path` that leads to no folder; `what` names the contents that it should have.
pub(crate) fn check_path(path: &Path, what: &str) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let there = if path.as_os_str().is_empty() { "" } else { ", and there is none" };
    Err(Error::setting("path", path.display(), format!("expected the folder with {what}{there}")))
}

/// Returns the folders `train` and `test` below `folder`, if both exist. `val`, `valid` or `validation` replaces a missing
/// `test`.
pub(crate) fn split_folders(folder: &Path) -> Option<[PathBuf; 2]> {
    let train = Some(folder.join("train")).filter(|train| train.is_dir())?;
    let test = TEST_FOLDERS.map(|name| folder.join(name)).into_iter().find(|test| test.is_dir())?;
    Some([train, test])
}

/// Image files by class folder, sorted; an empty class folder stays in as an empty list.
pub(crate) fn scan(folder: &Path) -> Result<Folders> {
    let folders = list(folder)?.into_iter().filter(|path| path.is_dir());
    let mut others = BTreeMap::new();
    let images = |class: PathBuf| {
        let below = Below::of(&class)?;
        below
            .others
            .into_iter()
            .for_each(|(extension, count)| *others.entry(extension).or_default() += count);
        Ok((name_of(&class), below.images))
    };
    let classes = folders.map(images).collect::<Result<Folders>>()?;
    if !others.is_empty() {
        tracing::warn!("{}: {}", folder.display(), left_out(&others));
    }
    if classes.is_empty() {
        return Err(Error::data(folder, "has no class folders"));
    }
    Ok(classes)
}

/// Files below a folder, at any depth, hidden files and folders left out.
#[derive(Debug, Default)]
pub struct Below {
    /// Image files, sorted within each folder.
    pub images: Vec<PathBuf>,
    /// Number of files without the extension of an image, by extension.
    pub others: BTreeMap<String, usize>,
}

/// Describes files that are left out because of their extensions.
pub fn left_out(others: &BTreeMap<String, usize>) -> String {
    let named = |(extension, count): (&String, &usize)| match extension.is_empty() {
        true => format!("{count} without extension"),
        false => format!("{count} .{extension}"),
    };
    let kinds: Vec<String> = others.iter().take(5).map(named).collect();
    let more = if others.len() > kinds.len() { ", ..." } else { "" };
    let (count, kinds) = (others.values().sum::<usize>(), kinds.join(", "));
    format!("files left out, whose extensions are not those of images: {count} ({kinds}{more})")
}

impl Below {
    /// Lists the files below `folder`.
    pub fn of(folder: &Path) -> Result<Self> {
        let mut below = Self::default();
        below.collect(folder, &mut Vec::new())?;
        Ok(below)
    }

    /// Adds the files below `folder`; `above` are the folders on the way to it.
    fn collect(&mut self, folder: &Path, above: &mut Vec<PathBuf>) -> Result<()> {
        let own = folder.canonicalize().map_err(unreadable(folder))?;
        // A link back leads nowhere new.
        if above.contains(&own) {
            return Ok(());
        }
        above.push(own);
        for path in list(folder)? {
            let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
            if path.is_dir() {
                self.collect(&path, above)?;
            } else if EXTENSIONS.contains(&extension.as_str()) {
                self.images.push(path);
            } else {
                *self.others.entry(extension).or_default() += 1;
            }
        }
        above.pop();
        Ok(())
    }
}

/// Entries of a folder in name order, hidden ones left out.
pub(crate) fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).and_then(|all| all.map(|entry| Ok(entry?.path())).collect());
    let mut paths: Vec<PathBuf> = entries.map_err(unreadable(folder))?;
    paths.retain(|path| !name_of(path).starts_with('.'));
    paths.sort();
    Ok(paths)
}

/// Name of a file or folder without those above it.
fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The entry of `folder` whose name is most like `name`, for messages.
pub(crate) fn nearest_in(folder: &Path, name: &str) -> Option<String> {
    let names: Vec<String> = list(folder).unwrap_or_default().iter().map(|path| name_of(path)).collect();
    nearest(name, names.iter().map(String::as_str))
}

/// Decodes an image file.
pub(crate) fn image(file: &Path) -> Result<RgbImage> {
    decode(&read(file)?).map_err(|e| Error::data(file, format!("is not a readable image: {e}")))
}

/// Image files with their labels.
pub(crate) struct Files {
    root: PathBuf,
    files: Vec<(PathBuf, usize)>,
}

impl Files {
    /// The files of `folders`, whose position in `classes` is their label. Files are known by their paths from `root`.
    pub(crate) fn new(root: &Path, folders: &Folders, classes: &[String]) -> Self {
        let mut files = Vec::new();
        for (label, class) in classes.iter().enumerate() {
            files.extend(folders.get(class).into_iter().flatten().map(|file| (file.clone(), label)));
        }
        Self { root: root.into(), files }
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
        image(&self.files[index].0)
    }

    fn files(&self) -> Result<Vec<DataRecord>> {
        Ok(vec![DataRecord::of_files(&self.root, self.files.iter().map(|(file, _)| file))?])
    }

    fn id(&self, index: usize) -> String {
        let file = &self.files[index].0;
        file.strip_prefix(&self.root).unwrap_or(file).display().to_string()
    }
}
