//! Folders of images apart from any run: are they whole, and a stated split of them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use cdl_core::{prelude::*, system::atomic::write_atomic, transform::decode};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

pub use super::folder::Below;
use super::folder::{self, Folders};

/// The image files below a folder; files of other names are passed over.
///
/// # Errors
/// Folders that cannot be read.
pub fn below(root: &Path) -> Result<Below> {
    Below::of(root)
}

/// What was found in a folder of images.
#[derive(Debug, Default)]
pub struct Found {
    /// Images that can be decoded, by the folder that holds them, relative to the one that was looked at.
    pub counts: BTreeMap<String, usize>,
    /// Images that cannot be.
    pub damaged: Vec<Error>,
}

/// Decodes every image below `root`; `seen` is told of each.
///
/// # Errors
/// Folders that cannot be read.
pub fn look(root: &Path, seen: &(dyn Fn() + Sync)) -> Result<Found> {
    let files = below(root)?.images;
    let decoded: Vec<Option<Error>> = files
        .par_iter()
        .map(|file| {
            let fail = |reason: String| Error::Data { file: file.clone(), reason };
            let bytes = fs::read(file).map_err(|e| fail(format!("cannot be read: {e}")));
            let image = bytes
                .and_then(|bytes| decode(&bytes).map_err(|e| fail(format!("is not a readable image: {e}"))));
            seen();
            image.err()
        })
        .collect();
    let mut found = Found::default();
    for (file, error) in files.iter().zip(decoded) {
        let folder = file.parent().unwrap_or(root);
        let name = folder.strip_prefix(root).unwrap_or(folder).display().to_string();
        let count = found.counts.entry(name).or_default();
        match error {
            None => *count += 1,
            Some(error) => found.damaged.push(error),
        }
    }
    Ok(found)
}

/// A split of the images of a folder, `root/CLASS/image`, into two lists.
#[derive(Debug, PartialEq, Eq)]
pub struct SplitLists {
    /// `path label` lines of the training images, with a header of comments.
    pub train: String,
    /// The test images, likewise.
    pub test: String,
    /// Classes, training images and test images.
    pub counts: [usize; 3],
}

/// Draws `fraction` of each class's images for testing, at least one and not all, in the way in which streams draw
/// their own split by `split_seed`. Labels are the classes in the order of their names.
///
/// # Errors
/// A fraction that is none, classes of fewer than two images, images in folders below that of their class, names
/// that no line can hold.
pub fn split(root: &Path, fraction: f64, seed: u64) -> Result<SplitLists> {
    if !(fraction > 0.0 && fraction < 1.0) {
        return Err(Error::setting("fraction", fraction, "expected a share above 0 and below 1, as 0.2"));
    }
    let fail = |file: &Path, reason: String| Error::Data { file: file.into(), reason };
    if root.join("train").is_dir() && root.join("test").is_dir() {
        return Err(fail(
            root,
            "is split already, into `train` and `test`; name one of these folders".into(),
        ));
    }
    let classes: Folders = folder::scan(root)?;
    let mut all = Sha256::new();
    let (mut halves, mut counts) = ([String::new(), String::new()], [classes.len(), 0, 0]);
    for (label, (class, files)) in classes.iter().enumerate() {
        if files.len() < 2 {
            let reason = format!("has {} image, too few to divide", files.len());
            return Err(fail(&root.join(class), reason));
        }
        // Who reads a list takes the folder of an image as its class.
        if let Some(deep) = files.iter().find(|file| file.parent() != Some(&root.join(class))) {
            let reason = format!("lies deeper than `CLASS/image`; move it up to `{class}`");
            return Err(fail(deep, reason));
        }
        let names: Result<Vec<String>> = files.iter().map(|file| line_name(root, file)).collect();
        let names = names?;
        names.iter().for_each(|name| all.update(format!("{name}\n")));
        let (train, test) = drawn(names, class, fraction, seed);
        for (at, half) in [train, test].into_iter().enumerate() {
            counts[1 + at] += half.len();
            for name in half {
                // A line that begins with # is a comment.
                let start = if name.starts_with(['#', ' ']) { "./" } else { "" };
                halves[at] += &format!("{start}{name} {label}\n");
            }
        }
    }
    let sha256: String = all.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let [train, test] = halves;
    let header = |what: &str, count: usize| {
        format!(
            "# {what}: {count} of {} images in {} classes\n# seed {seed}, fraction {fraction} of each class for testing\n\
             # SHA-256 of the names of all images, a line each: {sha256}\n",
            counts[1] + counts[2],
            counts[0],
        )
    };
    Ok(SplitLists {
        train: header("training images", counts[1]) + &train,
        test: header("test images", counts[2]) + &test,
        counts,
    })
}

impl SplitLists {
    /// Writes `train.txt` and `test.txt` into `folder`, which is made if need be.
    ///
    /// # Errors
    /// Lists that are there already, and places that cannot be written.
    pub fn write(&self, folder: &Path) -> Result<[PathBuf; 2]> {
        let files = ["train.txt", "test.txt"].map(|name| folder.join(name));
        if let Some(file) = files.iter().find(|file| file.exists()) {
            let reason = "is there already; choose another folder or remove it".into();
            return Err(Error::Data { file: file.clone(), reason });
        }
        fs::create_dir_all(folder).map_err(|source| Error::Io { file: folder.into(), source })?;
        write_atomic(&files[0], self.train.as_bytes())?;
        write_atomic(&files[1], self.test.as_bytes())?;
        Ok(files)
    }
}

/// Both halves of a class's items, `fraction` in the second, each in the order in which they came.
pub(super) fn drawn<T: Ord>(mut items: Vec<T>, class: &str, fraction: f64, seed: u64) -> (Vec<T>, Vec<T>) {
    Rng::new(seed).derive(&format!("split, class {class}")).shuffle(&mut items);
    // A share like 0.29 of 100 comes out as a little less than 29.
    let count = (fraction * items.len() as f64 + 1e-9).floor() as usize;
    let count = count.clamp(1, items.len().max(2) - 1).min(items.len());
    let mut test = items.split_off(items.len() - count);
    items.sort();
    test.sort();
    (items, test)
}

/// A file's path from `root` as it stands in a list.
fn line_name(root: &Path, file: &Path) -> Result<String> {
    let fail =
        |reason: &str| Error::Data { file: file.into(), reason: format!("cannot be listed: {reason}") };
    let relative = file.strip_prefix(root).unwrap_or(file);
    let parts: Option<Vec<&str>> = relative.iter().map(|part| part.to_str()).collect();
    let name = parts.ok_or_else(|| fail("its name is not UTF-8"))?.join("/");
    if name.contains(['\n', '\r']) || name.ends_with(char::is_whitespace) {
        return Err(fail("its name has a line break or ends with a space"));
    }
    Ok(name)
}
