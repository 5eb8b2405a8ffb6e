//! The MNIST family in its own IDX format (LeCun et al., 1998): MNIST, Fashion-MNIST, KMNIST.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use cdl_core::{
    data::{ImageSet, ImageStream, TaskSettings},
    error::nearest,
    image::RgbImage,
    prelude::*,
};
use flate2::read::GzDecoder;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::data::folder::check_path;

/// Settings of `idx`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct IdxConfig {
    /// Folder with `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and
    /// `t10k-labels-idx1-ubyte`, each plain or with `.gz`. Relative to the working directory.
    pub path: PathBuf,
    /// Class names in the order of the labels: `numbers`, `fashion_mnist`, or a list.
    pub class_names: ClassNames,
    /// Tasks, subsets and transforms.
    #[serde(flatten)]
    pub tasks: TaskSettings,
}

impl Default for IdxConfig {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            class_names: ClassNames::Known(KnownNames::Numbers),
            tasks: TaskSettings::default(),
        }
    }
}

/// How classes are called.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum ClassNames {
    /// A list that comes with this program.
    Known(KnownNames),
    /// One name for each label from 0.
    List(Vec<String>),
}

/// Lists of class names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KnownNames {
    /// `0`, `1`, ... up to the largest label.
    Numbers,
    /// The ten classes of Fashion-MNIST (Xiao et al., arXiv 1708.07747).
    FashionMnist,
}

const FASHION_MNIST: [&str; 10] = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
];

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
    let open = |split: &str| -> Result<IdxSet> {
        let images = open(path, &format!("{split}-images-idx3-ubyte"))?;
        let labels = open(path, &format!("{split}-labels-idx1-ubyte"))?;
        let set = IdxSet::parse(&images.path, &images.bytes, &labels.path, &labels.bytes)?;
        Ok(set.of_files(vec![images.record, labels.record]))
    };
    let (train, test) = (open("train")?, open("t10k")?);
    let count = 1 + train.labels.iter().chain(&test.labels).copied().max().unwrap_or(0) as usize;
    let names = match config.class_names {
        ClassNames::List(names) => names,
        ClassNames::Known(KnownNames::Numbers) => (0..count).map(|label| label.to_string()).collect(),
        ClassNames::Known(KnownNames::FashionMnist) => FASHION_MNIST.map(String::from).to_vec(),
    };
    if names.len() < count {
        let expected = format!("{} names for labels up to {}", names.len(), count - 1);
        return Err(Error::setting("class_names", names.join(", "), expected));
    }
    let stream = ImageStream::new("idx", names, Box::new(train), Box::new(test), &config.tasks, context)?;
    Ok(Box::new(stream))
}

/// A file, unpacked.
struct Opened {
    path: PathBuf,
    bytes: Vec<u8>,
    /// The file as it lies there.
    record: DataRecord,
}

/// Reads `name` or `name.gz` in `folder`.
fn open(folder: &Path, name: &str) -> Result<Opened> {
    let plain = folder.join(name);
    let zipped = folder.join(format!("{name}.gz"));
    let file = [&plain, &zipped].into_iter().find(|file| file.exists()).ok_or_else(|| {
        let names: Vec<String> = std::fs::read_dir(folder)
            .map(|entries| entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
            .unwrap_or_default();
        let near = nearest(name, names.iter().map(String::as_str));
        let near = near.map(|n| format!("; the folder has `{n}`")).unwrap_or_default();
        Error::Data { file: plain.clone(), reason: format!("not found, neither plain nor as .gz{near}") }
    })?;
    let fail = |e: std::io::Error| Error::Data { file: file.clone(), reason: format!("cannot be read: {e}") };
    let bytes = std::fs::read(file).map_err(fail)?;
    let record = DataRecord::of_bytes(file, &bytes);
    Ok(Opened { path: file.clone(), bytes: unzip(bytes).map_err(fail)?, record })
}

/// Unpacks gzip data, no further than a few bytes beyond what its IDX header says; other data stays as it is.
pub(super) fn unzip(bytes: Vec<u8>) -> std::io::Result<Vec<u8>> {
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok(bytes);
    }
    let mut unpacked = GzDecoder::new(bytes.as_slice());
    let mut plain = Vec::new();
    unpacked.by_ref().take(LONGEST_HEADER).read_to_end(&mut plain)?;
    let announced = plain.get(3).map_or(0, |&dims| {
        let sizes = plain[4..].chunks_exact(4).take(dims.into());
        sizes.fold(1u64, |all, raw| {
            all.saturating_mul(u32::from_be_bytes([raw[0], raw[1], raw[2], raw[3]]).into())
        })
    });
    unpacked.take(announced.saturating_add(1)).read_to_end(&mut plain)?;
    Ok(plain)
}

/// Bytes of a header with three dimensions, the most that is read here.
const LONGEST_HEADER: u64 = 16;

/// Grey images and labels.
pub(super) struct IdxSet {
    pixels: Vec<u8>,
    rows: usize,
    columns: usize,
    labels: Vec<u8>,
    files: Vec<DataRecord>,
}

impl IdxSet {
    /// Reads the two files of a split; the paths are for messages.
    pub(super) fn parse(image_file: &Path, images: &[u8], label_file: &Path, labels: &[u8]) -> Result<Self> {
        let (dims, pixels) = payload::<3>(image_file, images)?;
        let ([count], labels) = payload::<1>(label_file, labels)?;
        if dims[0] != count {
            let reason = format!("{} images, but {count} labels in {}", dims[0], label_file.display());
            return Err(Error::Data { file: image_file.into(), reason });
        }
        if dims[1] == 0 || dims[2] == 0 {
            return Err(Error::Data { file: image_file.into(), reason: "images without pixels".into() });
        }
        Ok(Self {
            pixels: pixels.into(),
            rows: dims[1],
            columns: dims[2],
            labels: labels.into(),
            files: Vec::new(),
        })
    }

    /// The same set, with the files that it was read from.
    pub(super) fn of_files(self, files: Vec<DataRecord>) -> Self {
        Self { files, ..self }
    }
}

/// Dimensions and data of an IDX file of unsigned bytes: 0, 0, type 8, number of dimensions, then each dimension as a
/// big-endian 32-bit number.
fn payload<'a, const N: usize>(file: &Path, bytes: &'a [u8]) -> Result<([usize; N], &'a [u8])> {
    let fail = |reason: String| Error::Data { file: file.into(), reason };
    let start = 4 + 4 * N;
    if bytes.len() < start || bytes[..3] != [0, 0, 8] || bytes[3] as usize != N {
        return Err(fail(format!("not an IDX file of unsigned bytes with {N} dimension(s)")));
    }
    let mut dims = [0; N];
    for (dim, raw) in dims.iter_mut().zip(bytes[4..start].chunks_exact(4)) {
        *dim = u32::from_be_bytes([raw[0], raw[1], raw[2], raw[3]]) as usize;
    }
    let expected = dims.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    match expected {
        Some(expected) if expected == bytes.len() - start => Ok((dims, &bytes[start..])),
        _ => Err(fail(format!(
            "{} bytes of data, but its header says {dims:?}: truncated?",
            bytes.len() - start
        ))),
    }
}

impl ImageSet for IdxSet {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn label(&self, index: usize) -> usize {
        self.labels[index] as usize
    }

    fn image(&self, index: usize) -> Result<RgbImage> {
        let size = self.rows * self.columns;
        let grey = &self.pixels[index * size..(index + 1) * size];
        Ok(RgbImage::from_fn(self.columns as u32, self.rows as u32, |x, y| {
            [grey[y as usize * self.columns + x as usize]; 3].into()
        }))
    }

    fn in_memory(&self) -> bool {
        true
    }

    fn files(&self) -> Result<Vec<DataRecord>> {
        Ok(self.files.clone())
    }

    fn id(&self, index: usize) -> String {
        index.to_string()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    #[test]
    fn gzip_is_unpacked_only_as_far_as_the_header_says() {
        let zipped = |more: usize| {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
            encoder.write_all(&[0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 2]).unwrap();
            encoder.write_all(&vec![7; 8 + more]).unwrap();
            encoder.finish().unwrap()
        };
        let exact = unzip(zipped(0)).unwrap();
        assert_eq!(payload::<3>(Path::new("images"), &exact).unwrap(), ([2, 2, 2], &[7; 8][..]));
        let bomb = unzip(zipped(10_000_000)).unwrap();
        assert!(bomb.len() < 64, "{} bytes", bomb.len());
        assert!(payload::<3>(Path::new("images"), &bomb).is_err());
        assert!(unzip(zipped(0)[..20].to_vec()).is_err());
    }
}
