//! Tools for folders of images outside a run: a check that all images decode, and a reproducible train/test split.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use cdl_core::{
    prelude::*,
    system::{atomic::write_atomic, hex},
    transform::Exif,
};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

pub use super::class_folders::{FolderFiles, describe_skipped};
use super::{
    class_folders::{self, name_of, printable, split_folders},
    splits::draw,
};

/// Result of decoding the images of a folder.
#[derive(Debug, Default)]
pub struct DecodedImages {
    /// Number of images that can be decoded, by the folder that contains them, relative to the folder that was read.
    pub counts: BTreeMap<String, usize>,
    /// Errors of the images that cannot be decoded.
    pub damaged: Vec<Error>,
    /// Numbers of files without an image extension, by extension.
    pub others: BTreeMap<String, usize>,
}

/// Decodes every image in `root` and its subfolders. Calls `seen` after each image.
pub fn decode_all(root: &Path, seen: &(dyn Fn() + Sync)) -> Result<DecodedImages> {
    let FolderFiles { images: files, others } = FolderFiles::list(root)?;
    let decode = |file: &PathBuf| {
        let image = class_folders::image(file, Exif::Ignore);
        seen();
        image.err()
    };
    let errors: Vec<Option<Error>> = files.par_iter().map(decode).collect();
    let mut found = DecodedImages { others, ..DecodedImages::default() };
    for (file, error) in files.iter().zip(errors) {
        let folder = file.parent().unwrap_or(root);
        let name = printable(folder.strip_prefix(root).unwrap_or(folder));
        *found.counts.entry(name).or_default() += usize::from(error.is_none());
        found.damaged.extend(error);
    }
    Ok(found)
}

/// Split of the images of a folder, `root/CLASS/image`, into a training list and a test list.
#[derive(Debug, PartialEq, Eq)]
pub struct SplitLists {
    /// Training list: `path label` lines, with a header of comments.
    pub train: String,
    /// Test list, in the format of `train`.
    pub test: String,
    /// Numbers of classes, training images and test images.
    pub counts: [usize; 3],
}

/// Draws `fraction` of each class's images for testing: at least one image, but not all. Streams draw their 80/20 split
/// with the same generator, seeded by `split_seed`. Labels number the classes in the order of their names.
///
/// # Errors
/// A fraction outside (0, 1), a class with fewer than two images, an image in a subfolder of its class folder, or a
/// file name that cannot be written on one line.
pub fn split(root: &Path, fraction: f64, seed: u64) -> Result<SplitLists> {
    if !(fraction > 0.0 && fraction < 1.0) {
        return Err(Error::setting(
            "fraction",
            fraction,
            "expected a number above 0 and below 1, such as 0.2",
        ));
    }
    if let Some(halves) = split_folders(root) {
        let [train, test] = halves.map(|half| name_of(&half));
        let reason = format!("is already split into `{train}` and `{test}`; give one of these folders");
        return Err(Error::data(root, reason));
    }
    let classes = class_folders::scan(root)?;
    let mut all = Sha256::new();
    let (mut halves, mut sizes) = ([String::new(), String::new()], [0; 2]);
    for (label, (class, files)) in classes.iter().enumerate() {
        let (folder, count) = (root.join(class), files.len());
        if count < 2 {
            let count = if count == 1 { "1 image" } else { "no images" };
            return Err(Error::data(folder, format!("has {count}; a split needs at least 2")));
        }
        let names = files.iter().map(|file| line_name(root, file)).collect::<Result<Vec<_>>>()?;
        // Streams that read a list take the name of an image's folder as its class.
        if let Some(deep) = files.iter().find(|file| file.parent() != Some(&folder)) {
            let reason = format!(
                "is in a subfolder of its class folder; move the images into `{class}`, or split the folder `{class}` itself \
                 if its subfolders are the classes"
            );
            return Err(Error::data(deep, reason));
        }
        names.iter().for_each(|name| all.update(format!("{name}\n")));
        // Without the addition, rounding errors lose an image: 0.29 * 100 is slightly less than 29.
        let tests = (fraction * count as f64 + 1e-9).floor() as usize;
        for (at, half) in draw(names, class, tests.clamp(1, count - 1), seed).into_iter().enumerate() {
            sizes[at] += half.len();
            for name in half {
                // A line that begins with # is a comment.
                let start = if name.starts_with(['#', ' ']) { "./" } else { "" };
                halves[at] += &format!("{start}{name} {label}\n");
            }
        }
    }
    let ([train, test], [training, testing], classes) = (halves, sizes, classes.len());
    let (images, sha256) = (training + testing, hex(&all.finalize()));
    let header = |half: &str, count: usize| {
        format!(
            "# {half} images: {count} of {images} images in {classes} classes\n\
             # seed {seed}, fraction {fraction} of each class for testing\n\
             # SHA-256 of the names of all images, a line each: {sha256}\n",
        )
    };
    Ok(SplitLists {
        train: header("training", training) + &train,
        test: header("test", testing) + &test,
        counts: [classes, training, testing],
    })
}

impl SplitLists {
    /// Writes `train.txt` and `test.txt` into `folder`, which is created if it does not exist.
    ///
    /// # Errors
    /// A list that already exists, or a folder that cannot be written.
    pub fn write(&self, folder: &Path) -> Result<[PathBuf; 2]> {
        let files = ["train.txt", "test.txt"].map(|name| folder.join(name));
        if let Some(file) = files.iter().find(|file| file.exists()) {
            return Err(Error::data(file, "already exists; choose another folder or remove it"));
        }
        fs::create_dir_all(folder).map_err(|source| Error::Io { file: folder.into(), source })?;
        write_atomic(&files[0], self.train.as_bytes())?;
        write_atomic(&files[1], self.test.as_bytes())?;
        Ok(files)
    }
}

/// Returns a file's path from `root` as it is written in a list.
fn line_name(root: &Path, file: &Path) -> Result<String> {
    let fail = |reason: &str| Error::data(file, format!("cannot be listed: {reason}"));
    let relative = file.strip_prefix(root).unwrap_or(file);
    let parts: Option<Vec<&str>> = relative.iter().map(|part| part.to_str()).collect();
    let name = parts.ok_or_else(|| fail("its name is not UTF-8"))?.join("/");
    if name.contains(['\n', '\r']) || name.ends_with(char::is_whitespace) {
        return Err(fail("its name has a line break or ends with a space"));
    }
    Ok(name)
}
