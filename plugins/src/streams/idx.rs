//! MNIST family in its IDX format (LeCun et al., 1998): MNIST, Fashion-MNIST, KMNIST.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use cdl_core::{prelude::*, system::memory};
use flate2::read::GzDecoder;

use crate::data::{
    class_folders::{check_path, nearest_in},
    planes::Planes,
    read, unreadable,
};

/// Settings of `idx`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct IdxConfig {
    /// Folder with `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and
    /// `t10k-labels-idx1-ubyte`, each plain or gzipped (`.gz`). Relative to the working directory.
    pub path: PathBuf,
    /// Class names: `numbers` (the labels), `fashion_mnist`, or a list in the order of the labels.
    pub class_names: ClassNames,
    /// Tasks, subsets and transforms.
    #[serde(flatten)]
    pub tasks: TaskSettings,
}

/// Names of the classes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum ClassNames {
    /// List embedded in this program.
    Known(BuiltinNames),
    /// Names of the labels 0, 1, ..., or of 1, 2, ... if no image has the label 0.
    List(Vec<String>),
}

impl Default for ClassNames {
    fn default() -> Self {
        Self::Known(BuiltinNames::Numbers)
    }
}

/// Lists of class names embedded in this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BuiltinNames {
    /// `0`, `1`, ... up to the largest label.
    Numbers,
    /// The ten classes of Fashion-MNIST (Xiao et al., arXiv 1708.07747).
    FashionMnist,
}

/// Class names of Fashion-MNIST, one per line.
pub(super) const FASHION_MNIST: &str = include_str!("../../assets/fashion_mnist/classes.txt");

cdl_core::register!(Stream {
    name: "idx",
    about: "MNIST family in IDX files, plain or gzipped",
    citation: "LeCun et al., Proceedings of the IEEE 1998; Fashion-MNIST: Xiao et al., arXiv:1708.07747",
    config: IdxConfig,
    build: build,
});

fn build(config: IdxConfig, context: &StreamContext<'_>) -> Result<Box<dyn TaskStream>> {
    let path = &config.path;
    check_path(path, "the IDX files")?;
    let half = |split: &str| {
        let images = open(path, &format!("{split}-images-idx3-ubyte"))?;
        labelled_images(images, open(path, &format!("{split}-labels-idx1-ubyte"))?)
    };
    let (train, test) = (half("train")?, half("t10k")?);
    let labels = || train.labels.iter().chain(&test.labels).map(|&label| usize::from(label));
    let count = 1 + labels().max().unwrap_or(0);
    let names = match config.class_names {
        // Labels that begin with 1, as in EMNIST's letters. Class 0 has no images, so the stream leaves it out.
        ClassNames::List(names) if names.len() + 1 == count && labels().all(|label| label > 0) => {
            [vec!["0".into()], names].concat()
        }
        ClassNames::List(names) => names,
        ClassNames::Known(BuiltinNames::Numbers) => (0..count).map(|label| label.to_string()).collect(),
        ClassNames::Known(BuiltinNames::FashionMnist) => FASHION_MNIST.lines().map(String::from).collect(),
    };
    if names.len() < count {
        let expected = format!("expected {count} names, one for each label up to {}", count - 1);
        return Err(Error::setting("class_names", names.join(", "), expected));
    }
    let stream = ImageStream::new("idx", names, Box::new(train), Box::new(test), &config.tasks, context)?;
    Ok(Box::new(stream))
}

/// Reads `name` or `name.gz` in `folder`.
fn open(folder: &Path, name: &str) -> Result<IdxFile> {
    let plain = folder.join(name);
    let files = [plain.clone(), folder.join(format!("{name}.gz"))];
    let file = files.into_iter().find(|file| file.exists()).ok_or_else(|| {
        let near = nearest_in(folder, name).map(|near| format!("; the folder contains `{near}`"));
        let near = near.unwrap_or_default();
        Error::data(plain, format!("not found, neither plain nor gzipped (.gz){near}"))
    })?;
    let packed = read(&file)?;
    IdxFile::new(file, packed)
}

/// Joins the images and labels of a split.
pub(super) fn labelled_images(images: IdxFile, labels: IdxFile) -> Result<Planes> {
    let ([count, rows, columns], pixels) = images.parse()?;
    let ([label_count], label_bytes) = labels.parse()?;
    if count != label_count {
        let reason = format!("{count} images, but {label_count} labels in {}", labels.path.display());
        return Err(Error::data(images.path, reason));
    }
    if rows == 0 || columns == 0 {
        return Err(Error::data(images.path, "contains images without pixels"));
    }
    Ok(Planes {
        pixels: pixels.into(),
        labels: label_bytes.into(),
        shape: [1, rows, columns],
        files: vec![images.record, labels.record],
    })
}

/// Decompressed IDX file.
pub(super) struct IdxFile {
    path: PathBuf,
    bytes: Vec<u8>,
    /// Record of the file before decompression.
    record: DataRecord,
}

/// Size in bytes of a header with three dimensions, the largest supported number.
const MAX_HEADER: u64 = 16;

impl IdxFile {
    /// Decompresses gzip data, up to one byte more than its IDX header states. Data that is not gzip stays unchanged.
    ///
    /// # Errors
    /// Damaged data, or a header that states more bytes than half of the free memory.
    pub(super) fn new(path: PathBuf, stored: Vec<u8>) -> Result<Self> {
        let record = DataRecord::of_bytes(&path, &stored);
        if !stored.starts_with(&[0x1f, 0x8b]) {
            return Ok(Self { path, bytes: stored, record });
        }
        let mut unpacked = GzDecoder::new(stored.as_slice());
        let mut bytes = Vec::new();
        unpacked.by_ref().take(MAX_HEADER).read_to_end(&mut bytes).map_err(unreadable(&path))?;
        let announced = sizes(&bytes).fold(1u64, |all, size| all.saturating_mul(size as u64));
        if let Some(free) = memory::available_bytes().filter(|free| announced > free / 2) {
            let megabytes = |bytes: u64| bytes / 1_000_000;
            let (stated, free) = (megabytes(announced), megabytes(free));
            return Err(Error::data(
                &path,
                format!("its header states {stated} MB; {free} MB of memory are free"),
            ));
        }
        unpacked.take(announced.saturating_add(1)).read_to_end(&mut bytes).map_err(unreadable(&path))?;
        Ok(Self { path, bytes, record })
    }

    /// Returns the sizes of the dimensions and the data of a file of unsigned bytes.
    fn parse<const N: usize>(&self) -> Result<([usize; N], &[u8])> {
        let parts = self.bytes.split_at_checked(4 + 4 * N);
        let Some((header, data)) = parts.filter(|(header, _)| header.starts_with(&[0, 0, 8, N as u8])) else {
            let dimensions = if N == 1 { "dimension" } else { "dimensions" };
            let reason = format!("not an IDX file of unsigned bytes with {N} {dimensions}");
            return Err(Error::data(&self.path, reason));
        };
        let mut dims = [0; N];
        dims.iter_mut().zip(sizes(header)).for_each(|(dim, size)| *dim = size);
        match dims.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim)) {
            Some(expected) if expected == data.len() => Ok((dims, data)),
            _ => {
                let found = format!("{} bytes of data", data.len());
                Err(Error::data(&self.path, format!("{found}, but its header states {dims:?}: truncated?")))
            }
        }
    }
}

/// Reads the sizes in a header: 0, 0, the type (8 for unsigned bytes), the number of dimensions, then the size of each
/// dimension as a big-endian 32-bit number.
fn sizes(bytes: &[u8]) -> impl Iterator<Item = usize> {
    let (start, sizes) = bytes.split_at_checked(4).unwrap_or_default();
    let count = start.last().map_or(0, |&count| count.into());
    sizes.chunks_exact(4).take(count).map(|raw| u32::from_be_bytes([raw[0], raw[1], raw[2], raw[3]]) as usize)
}
