//! `cdl data split`.

use std::path::PathBuf;

use cdl_plugins::image_files;
use clap::Args;

use crate::{ConfigArgs, Failure, emit};

/// Arguments of `cdl data split`.
#[derive(Debug, Args)]
#[command(after_help = "\
The lists have a line `path label` for each image and a header that says how they were drawn; the same seed, fraction and
images give the same lists. Streams of image folders read them as `train_list` and `test_list`.

Example:
  cdl data split data/imagenet-r --fraction 0.2 --seed 1 --out splits/imagenet-r
  cdl run configs/preset/imagenet_r_base_small.toml --set stream.train_list=splits/imagenet-r/train.txt \\
      --set stream.test_list=splits/imagenet-r/test.txt")]
pub struct SplitArgs {
    /// Folder with one folder of images for each class, or a configuration whose `stream.path` is one
    #[arg(value_name = "DIR|CONFIG")]
    source: PathBuf,
    /// Share of each class's images for testing
    #[arg(long, value_name = "SHARE", default_value_t = 0.2)]
    fraction: f64,
    /// Seed of the draw
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Where the lists `train.txt` and `test.txt` go
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Draws and writes.
pub fn split(args: &SplitArgs) -> Result<(), Failure> {
    let folder = match args.source.is_dir() {
        true => args.source.clone(),
        false => {
            super::folder_of(&ConfigArgs { configs: vec![args.source.clone()], sets: Vec::new() }.load()?)?
        }
    };
    let lists = image_files::split(&folder, args.fraction, args.seed).map_err(Failure::before_writing)?;
    let [train, test] = lists.write(&args.out).map_err(Failure::before_writing)?;
    let [classes, training, testing] = lists.counts;
    emit(&format!(
        "{classes} classes, {training} training and {testing} test images of {}\n\n\
         train_list = {:?}\ntest_list = {:?}\n",
        folder.display(),
        train.display().to_string(),
        test.display().to_string(),
    ))
}
