//! `cdl data verify`.

use std::path::{Path, PathBuf};

use cdl_core::{
    manifest::{self, Manifest},
    preflight,
};
use cdl_plugins::image_files;
use clap::Args;

use crate::{ConfigArgs, Failure, emit, logging::Log, progress::Spinner};

/// Arguments of `cdl data verify`.
#[derive(Debug, Args)]
#[command(after_help = "\
Of a folder, every image file is decoded; where it has a list SHA256SUMS, its files must be as listed there. Of a
configuration, every image that its run would use is decoded; files from the hub must have the hub's checksums. Exit code
2, with everything that is wrong, if something is.

Examples:
  cdl data verify data/imagenet-r
  cdl data verify data/imagenet-r --record            write the list SHA256SUMS, if all images can be decoded
  cdl data verify configs/preset/cifar100_base_small.toml")]
pub struct VerifyArgs {
    /// A folder, or configuration files (TOML)
    #[arg(required = true, value_name = "DIR|CONFIG")]
    sources: Vec<PathBuf>,
    /// Override a value of the configuration
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Write the list SHA256SUMS into the folder; not over another
    #[arg(long)]
    record: bool,
}

/// Looks at everything.
pub fn verify(args: &VerifyArgs, log: &Log, quiet: bool) -> Result<(), Failure> {
    match args.sources.as_slice() {
        [folder] if folder.is_dir() => verify_folder(folder, args.record, log, quiet),
        _ => verify_config(args, log, quiet),
    }
}

fn verify_folder(folder: &Path, record: bool, log: &Log, quiet: bool) -> Result<(), Failure> {
    let list = folder.join(manifest::NAME);
    if record && list.exists() {
        let message = format!("{} is there already; remove it to write another", list.display());
        return Err(Failure::mistake(message));
    }
    let spinner = Spinner::new(log, quiet, "files looked at");
    let found = image_files::look(folder, &|| spinner.one()).map_err(Failure::before_writing)?;
    let mut wrong = found.damaged;
    let listed = match list.exists() {
        true => {
            let manifest = Manifest::read(&list).map_err(Failure::before_writing)?;
            wrong.extend(manifest.check(folder, &|| spinner.one()));
            Some(manifest)
        }
        false if record && wrong.is_empty() => {
            let manifest = Manifest::of(folder, &|| spinner.one()).map_err(Failure::before_writing)?;
            manifest.write(&list)?;
            Some(manifest)
        }
        false => None,
    };
    spinner.finish();
    let mut text = String::new();
    for (name, count) in &found.counts {
        text += &format!("{count:>8}  {name}\n");
    }
    let images: usize = found.counts.values().sum();
    text += &format!("{images:>8}  images in {} folders can be decoded\n", found.counts.len());
    text += &match listed {
        Some(manifest) => format!("{:>8}  files listed in {}\n", manifest.0.len(), list.display()),
        None => format!("no list {}: checksums were not compared\n", manifest::NAME),
    };
    emit(&text)?;
    super::refuse("files are not as they should be", wrong)
}

fn verify_config(args: &VerifyArgs, log: &Log, quiet: bool) -> Result<(), Failure> {
    let config = ConfigArgs { configs: args.sources.clone(), sets: args.sets.clone() }.load()?;
    if args.record {
        return Err(Failure::mistake("--record is for a folder".into()));
    }
    let spinner = Spinner::new(log, quiet, "images looked at");
    let found = preflight::verify(&config, &|| spinner.one()).map_err(Failure::before_writing)?;
    spinner.finish();
    let mut text = String::from("   train      test  class\n");
    for count in &found.classes {
        text += &format!("{:>8}  {:>8}  {}\n", count.train, count.test, count.name);
    }
    text += &format!("{} images looked at, of {} files\n", found.looked_at, found.files);
    emit(&text)?;
    super::refuse("images cannot be read", found.damaged)
}
