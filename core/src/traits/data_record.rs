//! Records of the files of a data set, for `run.json`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{
    error::{Result, io},
    traits::Provenance,
};

/// Input of a SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Hashed {
    /// Contents of a single file.
    Contents,
    /// A line `length path` for each of several files, in the order of the images. Paths are relative to the data set's
    /// folder.
    NamesAndSizes,
}

/// Record of a file of a data set, or of a folder of files.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DataRecord {
    /// Origin, length and SHA-256. For several files, the length is the sum of their lengths.
    #[serde(flatten)]
    pub provenance: Provenance,
    /// Number of files.
    pub files: usize,
    /// Input of the SHA-256.
    pub hashed: Hashed,
}

impl DataRecord {
    /// Records one file by its contents.
    pub fn file(provenance: Provenance) -> Self {
        Self { provenance, files: 1, hashed: Hashed::Contents }
    }

    /// Records one file by the bytes that were read.
    pub fn of_bytes(path: &Path, bytes: &[u8]) -> Self {
        Self::file(Provenance::of_bytes(&path.display().to_string(), bytes))
    }

    /// Records several files below `root` by their names and sizes.
    ///
    /// # Errors
    /// A file whose length cannot be read.
    pub fn of_files<'a>(root: &Path, files: impl Iterator<Item = &'a PathBuf>) -> Result<Self> {
        let mut hash = Sha256::new();
        let (mut count, mut bytes) = (0, 0);
        for file in files {
            let length = fs::metadata(file).map_err(io(file))?.len();
            let name = file.strip_prefix(root).unwrap_or(file).display();
            hash.update(format!("{length} {name}\n"));
            count += 1;
            bytes += length;
        }
        let source = root.display().to_string();
        let provenance = Provenance::local(&source, &source, (bytes, crate::system::hex(&hash.finalize())));
        Ok(Self { provenance, files: count, hashed: Hashed::NamesAndSizes })
    }
}
