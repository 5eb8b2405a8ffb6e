//! Extracts a small, class-balanced subset of Fashion-MNIST: the first images of every class, in file order.
//!
//! The files have the format of the original files, so every reader of Fashion-MNIST can read the subset. The same
//! input gives the same bytes: the gzip headers contain no time stamp.

mod idx;

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use flate2::{Compression, GzBuilder};

use idx::{Split, SplitFiles};

const CLASSES: [&str; 10] = [
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

/// Extract a small, class-balanced subset of Fashion-MNIST.
#[derive(Parser)]
struct Args {
    /// Folder with the four files of Fashion-MNIST.
    #[arg(long, value_name = "DIR")]
    source: PathBuf,
    /// Folder to write the subset and `classes.txt` to.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Training images to keep of each class.
    #[arg(long, default_value_t = 250)]
    train_per_class: usize,
    /// Test images to keep of each class.
    #[arg(long, default_value_t = 100)]
    test_per_class: usize,
}

fn main() -> Result<()> {
    let args = Args::parse();
    fs::create_dir_all(&args.out).with_context(|| format!("cannot create {}", args.out.display()))?;
    for (files, per_class) in [(&idx::TRAIN, args.train_per_class), (&idx::TEST, args.test_per_class)] {
        let subset = first_of_each_class(&Split::read(&args.source, files)?, per_class)
            .with_context(|| format!("cannot extract a subset of {}", files.images))?;
        write_split(&args.out, files, &subset)?;
        println!("{}: {} images", files.images, subset.labels.len());
    }
    let classes = args.out.join("classes.txt");
    fs::write(&classes, CLASSES.map(|name| format!("{name}\n")).concat())
        .with_context(|| format!("cannot write {}", classes.display()))
}

/// Returns the first `per_class` images of each class, in the order of `split`.
fn first_of_each_class(split: &Split, per_class: usize) -> Result<Split> {
    let pixels = split.height * split.width;
    let mut kept = [0; CLASSES.len()];
    let mut subset = Split {
        height: split.height,
        width: split.width,
        images: Vec::with_capacity(CLASSES.len() * per_class * pixels),
        labels: Vec::with_capacity(CLASSES.len() * per_class),
    };
    for (image, &label) in split.images.chunks_exact(pixels).zip(&split.labels) {
        let kept = kept
            .get_mut(usize::from(label))
            .with_context(|| format!("label {label} is not one of {} classes", CLASSES.len()))?;
        if *kept < per_class {
            *kept += 1;
            subset.images.extend_from_slice(image);
            subset.labels.push(label);
        }
    }
    for (name, kept) in CLASSES.iter().zip(kept) {
        ensure!(kept == per_class, "class {name} has {kept} images, expected at least {per_class}");
    }
    Ok(subset)
}

fn write_split(folder: &Path, files: &SplitFiles, split: &Split) -> Result<()> {
    let dims = [split.labels.len(), split.height, split.width];
    write_idx(&folder.join(files.images), &dims, &split.images)?;
    write_idx(&folder.join(files.labels), &dims[..1], &split.labels)
}

/// Writes a compressed IDX file. Its gzip header contains neither a time stamp nor a file name.
fn write_idx(path: &Path, dims: &[usize], elements: &[u8]) -> Result<()> {
    let rank = u8::try_from(dims.len()).context("too many dimensions for IDX")?;
    let mut header = vec![0, 0, idx::UNSIGNED_BYTE, rank];
    for &size in dims {
        let size = u32::try_from(size).context("dimension too large for IDX")?;
        header.extend_from_slice(&size.to_be_bytes());
    }
    let write = || {
        let mut gzip = GzBuilder::new().mtime(0).write(File::create(path)?, Compression::best());
        gzip.write_all(&header)?;
        gzip.write_all(elements)?;
        gzip.finish()?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
