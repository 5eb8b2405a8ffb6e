//! Image files in one folder for each class.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use cdl_core::{data::ImageSet, image::RgbImage, prelude::*, transform::decode};

/// Image files by class.
pub(crate) type Folders = BTreeMap<String, Vec<PathBuf>>;

/// Extensions that count as images in a folder; others are passed over.
const EXTENSIONS: [&str; 10] = ["png", "jpg", "jpeg", "bmp", "gif", "webp", "tif", "tiff", "ppm", "pgm"];

/// Refuses a stream's `path` that leads to no folder; `what` says what is to be in it.
pub(crate) fn check_path(path: &Path, what: &str) -> Result<()> {
    let there = match (path.as_os_str().is_empty(), path.is_dir()) {
        (true, _) => "",
        (false, false) => ", and there is none",
        (false, true) => return Ok(()),
    };
    Err(Error::setting("path", path.display(), format!("expected the folder with {what}{there}")))
}

/// Image files by class folder, sorted; an empty class folder stays in as an empty list.
pub(crate) fn scan(folder: &Path) -> Result<Folders> {
    let mut classes = Folders::new();
    for class in list(folder)? {
        if class.is_dir() {
            let name = class.file_name().unwrap_or_default().to_string_lossy().into_owned();
            classes.insert(name, Below::of(&class)?.images);
        }
    }
    if classes.is_empty() {
        return Err(Error::Data { file: folder.into(), reason: "has no class folders".into() });
    }
    Ok(classes)
}

/// What lies below a folder, at any depth, hidden files and folders left out.
#[derive(Debug, Default)]
pub struct Below {
    /// Image files, sorted within each folder.
    pub images: Vec<PathBuf>,
    /// How many files have other endings.
    pub others: usize,
}

impl Below {
    pub(crate) fn of(folder: &Path) -> Result<Self> {
        let mut below = Self::default();
        below.collect(folder, &mut Vec::new())?;
        Ok(below)
    }

    /// Those below `above`, the folders on the way: a link back to one of them leads nowhere new.
    fn collect(&mut self, folder: &Path, above: &mut Vec<PathBuf>) -> Result<()> {
        let fail =
            |e: std::io::Error| Error::Data { file: folder.into(), reason: format!("cannot be read: {e}") };
        let own = folder.canonicalize().map_err(fail)?;
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
                self.others += 1;
            }
        }
        above.pop();
        Ok(())
    }
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
        let file = &self.files[index].0;
        let fail = |reason: String| Error::Data { file: file.clone(), reason };
        let bytes = std::fs::read(file).map_err(|e| fail(format!("cannot be read: {e}")))?;
        decode(&bytes).map_err(|e| fail(format!("is not a readable image: {e}")))
    }

    fn files(&self) -> Result<Vec<DataRecord>> {
        let files = self.files.iter().map(|(file, _)| file);
        Ok(vec![DataRecord::of_files(&self.root, files)?])
    }

    fn id(&self, index: usize) -> String {
        let file = &self.files[index].0;
        file.strip_prefix(&self.root).unwrap_or(file).display().to_string()
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn links_back_lead_nowhere() -> Result<()> {
        let fail = |e: std::io::Error| Error::Data { file: "folder".into(), reason: e.to_string() };
        let root = tempfile::tempdir().map_err(fail)?;
        let inner = root.path().join("inner");
        std::fs::create_dir(&inner).map_err(fail)?;
        std::fs::write(inner.join("a.png"), "").map_err(fail)?;
        for name in ["one", "two"] {
            std::os::unix::fs::symlink(root.path(), inner.join(name)).map_err(fail)?;
        }
        std::fs::write(inner.join("notes"), "").map_err(fail)?;
        let below = Below::of(root.path())?;
        assert_eq!((below.images, below.others), (vec![inner.join("a.png")], 1));
        Ok(())
    }
}
