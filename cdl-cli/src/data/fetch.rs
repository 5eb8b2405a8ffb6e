//! `cdl data fetch`.

use std::path::{Path, PathBuf};

use cdl_core::{
    hub::{
        WeightSource,
        data::{self, DataFile},
    },
    manifest::Manifest,
    preflight,
    registry::{self, Kind},
};
use clap::Args;

use crate::{ConfigArgs, Failure, emit, logging::Log, progress::Spinner};

/// Arguments of `cdl data fetch`.
#[derive(Debug, Args)]
#[command(after_help = "\
Files go into the cache of the Hugging Face libraries, where runs find them without a network. The environment variables
HF_HOME, HF_ENDPOINT (a mirror), HF_TOKEN and HF_HUB_OFFLINE apply. Every file must have the checksum that the hub lists.

Examples:
  cdl data fetch cifar100
  cdl data fetch hf:uoft-cs/cifar10 --dir data/cifar10
  cdl data fetch configs/preset/cifar100_base_small.toml --set stream.path=hf:uoft-cs/cifar100")]
pub struct FetchArgs {
    /// A stream that says where its data can be had, `hf:owner/name[@revision]`, or configuration files (TOML)
    #[arg(required = true, value_name = "NAME|CONFIG")]
    sources: Vec<String>,
    /// Override a value of the configuration
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Copy the files into a new folder as well, with their checksums
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Fetches, and says what was fetched.
pub fn fetch(args: &FetchArgs, log: &Log, quiet: bool) -> Result<(), Failure> {
    let refuse = |message: String| Failure::mistake(message);
    if let Some(dir) = args.dir.as_ref().filter(|dir| dir.exists()) {
        return Err(refuse(format!("{} is there already; name a new folder", dir.display())));
    }
    let source = match args.sources.as_slice() {
        [source] if source.starts_with("hf:") => Some(source.clone()),
        [name] if !Path::new(name).exists() => {
            let stream = registry::find(Kind::Stream, name).map_err(Failure::before_writing)?;
            match stream.source {
                Some(source) if source.starts_with("hf:") => Some(source.into()),
                Some(source) => {
                    return Err(refuse(format!("`{name}` cannot be fetched by this program: {source}")));
                }
                None => return Err(refuse(format!("`{name}` does not say where its data can be had"))),
            }
        }
        _ => None,
    };
    let Some(source) = source else {
        if args.dir.is_some() {
            return Err(refuse("--dir is for one data set, not for a configuration".into()));
        }
        let configs = args.sources.iter().map(PathBuf::from).collect();
        let config = ConfigArgs { configs, sets: args.sets.clone() }.load()?;
        // Plugins fetch what they need; the log names each file.
        let spinner = Spinner::uncounted(log, quiet, "fetching");
        let files = preflight::fetch(&config).map_err(Failure::before_writing)?;
        spinner.finish();
        let line =
            |file: &cdl_core::DataRecord| format!("{}  {}\n", file.provenance.sha256, file.provenance.file);
        return emit(&files.iter().map(line).collect::<String>());
    };
    let source: WeightSource =
        source.parse().map_err(|e| Failure::before_writing(cdl_core::Error::from(e)))?;
    let spinner = Spinner::new(log, quiet, "files fetched");
    let files = data::fetch(&source, |names| Ok(names.to_vec()), &|| spinner.one());
    let files = files.map_err(Failure::before_writing)?;
    spinner.finish();
    if let Some(dir) = &args.dir {
        Manifest::place(&files, dir).map_err(Failure::before_writing)?;
    }
    let line = |file: &DataFile| format!("{}  {}\n", file.provenance.sha256, file.name);
    emit(&files.iter().map(line).collect::<String>())
}
