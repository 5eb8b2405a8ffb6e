//! Reader of the IDX format of the MNIST family: a big-endian header (two zero bytes, the element type, the number of
//! dimensions, then one `u32` per dimension) followed by the elements, all compressed with gzip.

use std::{fs::File, io::Read, path::Path};

use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;

/// Type code of unsigned bytes, the only element type of the MNIST family.
pub const UNSIGNED_BYTE: u8 = 0x08;

/// File names of one split.
pub struct SplitFiles {
    pub images: &'static str,
    pub labels: &'static str,
}

pub const TRAIN: SplitFiles =
    SplitFiles { images: "train-images-idx3-ubyte.gz", labels: "train-labels-idx1-ubyte.gz" };

pub const TEST: SplitFiles =
    SplitFiles { images: "t10k-images-idx3-ubyte.gz", labels: "t10k-labels-idx1-ubyte.gz" };

/// One split of a labelled set of grey images.
pub struct Split {
    pub height: usize,
    pub width: usize,
    /// `labels.len()` images of `height * width` bytes, row by row.
    pub images: Vec<u8>,
    pub labels: Vec<u8>,
}

impl Split {
    /// Reads both files of a split from `folder`.
    pub fn read(folder: &Path, files: &SplitFiles) -> Result<Self> {
        let (dims, images) = read_idx(&folder.join(files.images))?;
        let &[count, height, width] = dims.as_slice() else {
            anyhow::bail!("{}: expected 3 dimensions, found {dims:?}", files.images);
        };
        ensure!(height * width > 0, "{}: images without pixels", files.images);
        let (dims, labels) = read_idx(&folder.join(files.labels))?;
        ensure!(dims == [count], "{}: expected {count} labels, found dimensions {dims:?}", files.labels);
        Ok(Self { height, width, images, labels })
    }
}

/// Reads the dimensions and the elements of a compressed IDX file.
fn read_idx(path: &Path) -> Result<(Vec<usize>, Vec<u8>)> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut bytes = Vec::new();
    GzDecoder::new(file)
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot decompress {}", path.display()))?;
    parse_idx(&bytes).with_context(|| format!("{} is not an IDX file of bytes", path.display()))
}

fn parse_idx(bytes: &[u8]) -> Result<(Vec<usize>, Vec<u8>)> {
    let (magic, mut rest) = bytes.split_first_chunk::<4>().context("the file is shorter than a header")?;
    let &[0, 0, UNSIGNED_BYTE, rank] = magic else {
        anyhow::bail!("magic number {magic:02x?}, expected [00, 00, 08, number of dimensions]");
    };
    let mut dims = Vec::with_capacity(usize::from(rank));
    for _ in 0..rank {
        let (size, tail) = rest.split_first_chunk::<4>().context("the header is truncated")?;
        dims.push(u32::from_be_bytes(*size) as usize);
        rest = tail;
    }
    let expected = dims.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    ensure!(expected == Some(rest.len()), "{} bytes do not match the dimensions {dims:?}", rest.len());
    Ok((dims, rest.to_vec()))
}
