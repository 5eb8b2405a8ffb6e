//! `cdl data`: downloads, verifies and splits data sets.

use std::path::{Path, PathBuf};

use cdl_core::{
    error::Error,
    hub::{
        FileSource,
        checksum_list::{self, ChecksumList},
        dataset::{self, DataFile},
    },
    registry::{self, Kind},
    run::preflight,
    traits::{ClassCount, DataRecord},
};
use cdl_plugins::image_files;
use clap::{Args, Subcommand};

use crate::{
    config_args::ConfigArgs,
    failure::Failure,
    logging::Log,
    progress::Spinner,
    terminal::{count, emit},
};

/// Commands for data sets.
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Download a data set, or the data and weights of a configuration
    Fetch(FetchArgs),
    /// Check that files match their checksums and that all images can be decoded
    Verify(VerifyArgs),
    /// Split an image folder at random and write two lists of files
    Split(SplitArgs),
}

impl DataCommand {
    /// True if the command uses methods, which plugins may provide.
    pub fn needs_plugins(&self) -> bool {
        match self {
            Self::Fetch(_) => true,
            Self::Verify(args) => !matches!(&args.sources[..], [folder] if folder.is_dir()),
            Self::Split(_) => false,
        }
    }
}

/// Runs the command.
pub fn data(command: &DataCommand, log: &Log) -> Result<(), Failure> {
    match command {
        DataCommand::Fetch(args) => fetch(args, log),
        DataCommand::Verify(args) => verify(args, log),
        DataCommand::Split(args) => split(args),
    }
}

/// Arguments of `cdl data fetch`.
#[derive(Debug, Args)]
#[command(after_help = "\
Files are stored in the cache of the Hugging Face libraries, where runs find them without a network. The environment \
variables HF_HOME, HF_ENDPOINT (a mirror), HF_TOKEN and HF_HUB_OFFLINE apply. Every file is verified against the checksum \
that the hub lists.

Examples:
  cdl data fetch cifar100
  cdl data fetch hf:uoft-cs/cifar10 --dir data/cifar10
  cdl data fetch configs/preset/cifar100_base_small.toml \\
      --set stream.path=hf:uoft-cs/cifar100")]
pub struct FetchArgs {
    /// Name of a stream whose data can be downloaded, `hf:owner/name[@revision]`, or configuration files (TOML)
    #[arg(required = true, value_name = "NAME|CONFIG")]
    sources: Vec<String>,
    /// Override a value of the configuration; repeatable
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Also copy the files, with their checksums, into a new folder
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Downloads the files and prints their checksums and names.
pub fn fetch(args: &FetchArgs, log: &Log) -> Result<(), Failure> {
    if let Some(dir) = args.dir.as_ref().filter(|dir| dir.exists()) {
        return Err(Failure::invalid(format!(
            "--dir {}: exists already; choose a new folder",
            dir.display()
        )));
    }
    let source = match args.sources.as_slice() {
        [source] if source.starts_with("hf:") => Some(source.clone()),
        [name] if !Path::new(name).exists() => {
            let stream = registry::find(Kind::Stream, name).map_err(Failure::before_writing)?;
            let source = match stream.source {
                Some(source) if source.starts_with("hf:") => Ok(source.to_string()),
                Some(source) => Err(format!("`{name}` cannot be downloaded by this program: {source}")),
                None => {
                    Err(format!("the stream `{name}` states no source from which its data can be downloaded"))
                }
            };
            Some(source.map_err(Failure::invalid)?)
        }
        _ => None,
    };
    let Some(source) = source else {
        if args.dir.is_some() {
            return Err(Failure::invalid("--dir: expected one data set, found a configuration".into()));
        }
        let configs = args.sources.iter().map(PathBuf::from).collect();
        let needed = [Kind::Stream, Kind::Backbone];
        let config = ConfigArgs { configs, sets: args.sets.clone() }.load_for(&needed)?;
        // Plugins download the files that they need; the log names each file.
        let spinner = Spinner::new(log, "{spinner} downloading");
        let files = preflight::fetch(&config).map_err(Failure::before_writing)?;
        drop(spinner);
        let line = |file: &DataRecord| format!("{}  {}\n", file.provenance.sha256, file.provenance.file);
        return emit(&files.iter().map(line).collect::<String>());
    };
    let source: FileSource = source.parse().map_err(|e| Failure::before_writing(Error::from(e)))?;
    let spinner = Spinner::new(log, "{pos} files downloaded");
    let files = dataset::fetch(&source, |names| Ok(names.to_vec()), &|| spinner.increment());
    let files = files.map_err(Failure::before_writing)?;
    drop(spinner);
    if let Some(dir) = &args.dir {
        ChecksumList::copy_with_list(&files, dir).map_err(Failure::before_writing)?;
    }
    let line = |file: &DataFile| format!("{}  {}\n", file.provenance.sha256, file.name);
    emit(&files.iter().map(line).collect::<String>())
}

/// Arguments of `cdl data verify`.
#[derive(Debug, Args)]
#[command(after_help = "\
For a folder, every image file is decoded, and all files are compared with the list SHA256SUMS if the folder has one. \
For a configuration, every image that its run would use is decoded, and files from the Hugging Face Hub are compared with \
the hub's checksums. All errors are listed, and the exit code is 2 if there are any.

Examples:
  cdl data verify data/imagenet-r
  cdl data verify data/imagenet-r --record
  cdl data verify configs/preset/cifar100_base_small.toml")]
pub struct VerifyArgs {
    /// Folder, or configuration files (TOML)
    #[arg(required = true, value_name = "DIR|CONFIG")]
    sources: Vec<PathBuf>,
    /// Override a value of the configuration; repeatable
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Write the list SHA256SUMS into a folder that has none, if all images can be decoded
    #[arg(long)]
    record: bool,
}

/// Verifies a folder or the data of a configuration.
pub fn verify(args: &VerifyArgs, log: &Log) -> Result<(), Failure> {
    if let [folder] = &args.sources[..]
        && folder.is_dir()
    {
        return verify_folder(folder, args.record, log);
    }
    if args.record {
        return Err(Failure::invalid("--record: expected a folder, found a configuration".into()));
    }
    let args_of_config = ConfigArgs { configs: args.sources.clone(), sets: args.sets.clone() };
    let config = args_of_config.load_for(&[Kind::Stream])?;
    let spinner = Spinner::new(log, "{pos} images checked");
    let found = preflight::verify(&config, &|| spinner.increment()).map_err(Failure::before_writing)?;
    drop(spinner);
    let mut text = String::from("   train      test  class\n");
    for ClassCount { name, train, test } in &found.classes {
        text += &format!("{train:>8}  {test:>8}  {name}\n");
    }
    text += &format!("{} checked in {}\n", count(found.looked_at, "image"), count(found.files, "file"));
    emit(&text)?;
    Failure::list(|damaged| format!("{} cannot be read", count(damaged, "image")), found.damaged)
}

/// Decodes all images of a folder and compares its files with `SHA256SUMS`. With `record`, writes that list if all
/// images can be decoded.
fn verify_folder(folder: &Path, record: bool, log: &Log) -> Result<(), Failure> {
    let list = folder.join(checksum_list::NAME);
    if record && list.exists() {
        let list = list.display();
        return Err(Failure::invalid(format!("{list} exists already; remove it to write a new one")));
    }
    let spinner = Spinner::new(log, "{pos} files checked");
    let found = image_files::decode_all(folder, &|| spinner.increment()).map_err(Failure::before_writing)?;
    let mut errors = found.damaged;
    let mut last = format!("no {}: checksums were not compared\n", checksum_list::NAME);
    let listed = |files: usize| format!("{files:>8}  files listed in {}\n", list.display());
    if list.exists() {
        let manifest = ChecksumList::read(&list).map_err(Failure::before_writing)?;
        errors.extend(manifest.check(folder, &|| spinner.increment()));
        last = listed(manifest.0.len());
    } else if record && errors.is_empty() {
        let manifest = ChecksumList::of(folder, &|| spinner.increment()).map_err(Failure::before_writing)?;
        manifest.write(&list)?;
        last = listed(manifest.0.len());
    }
    drop(spinner);
    if !found.others.is_empty() {
        tracing::warn!("{}: {}", folder.display(), image_files::describe_skipped(&found.others));
    }
    let mut text: String = found.counts.iter().map(|(name, count)| format!("{count:>8}  {name}\n")).collect();
    let images: usize = found.counts.values().sum();
    text += &format!("{images:>8}  images in {} can be decoded\n", count(found.counts.len(), "folder"));
    emit(&(text + &last))?;
    Failure::list(|number| format!("{} missing, damaged or not listed", count(number, "file")), errors)
}

/// Arguments of `cdl data split`.
#[derive(Debug, Args)]
#[command(after_help = "\
The lists contain a line `path label` for each image, below a header with the seed and the fraction. The same seed, \
fraction and images give the same lists. Streams of image folders accept the lists as `train_list` and `test_list`.

Example:
  cdl data split data/imagenet-r --fraction 0.2 --seed 1 --out splits/imagenet-r
  cdl run configs/preset/imagenet_r_base_small.toml \\
      --set stream.train_list=splits/imagenet-r/train.txt \\
      --set stream.test_list=splits/imagenet-r/test.txt")]
pub struct SplitArgs {
    /// Folder that contains a folder of images for each class, or a configuration whose `stream.path` is such a folder
    #[arg(value_name = "DIR|CONFIG")]
    source: PathBuf,
    /// Share of the images of each class for testing
    #[arg(long, value_name = "SHARE", default_value_t = 0.2)]
    fraction: f64,
    /// Seed of the random split
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Folder of the lists `train.txt` and `test.txt`
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Splits the images and writes the lists.
pub fn split(args: &SplitArgs) -> Result<(), Failure> {
    let folder = match args.source.is_dir() {
        true => args.source.clone(),
        false => {
            let config = ConfigArgs { configs: vec![args.source.clone()], sets: Vec::new() }.load_for(&[])?;
            let path = config.run.stream.settings.get("path").and_then(|path| path.as_str());
            let reason = "expected a configuration whose `stream.path` is an existing folder";
            path.map(PathBuf::from)
                .filter(|path| path.is_dir())
                .ok_or_else(|| Failure::invalid(format!("{}: {reason}", config.name())))?
        }
    };
    let lists = image_files::split(&folder, args.fraction, args.seed).map_err(Failure::before_writing)?;
    let [train, test] = lists.write(&args.out).map_err(Failure::before_writing)?;
    let ([classes, training, testing], folder) = (lists.counts, folder.display());
    let [train, test] = [train, test].map(|list| list.display().to_string());
    emit(&format!(
        "{}, {training} training and {} in {folder}\n\ntrain_list = {train:?}\ntest_list = {test:?}\n",
        count(classes, "class"),
        count(testing, "test image")
    ))
}
