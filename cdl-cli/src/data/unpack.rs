//! `cdl data unpack`.

use std::path::PathBuf;

use cdl_core::unpack::{self, Limits};
use clap::Args;

use crate::{Failure, emit, logging::Log, progress::Spinner};

/// Arguments of `cdl data unpack`.
#[derive(Debug, Args)]
#[command(after_help = "\
The archive may come from anywhere: paths out of the folder, links and devices are refused, and what comes out is bounded.
The folder appears whole or not at all.

Example:
  cdl data unpack imagenet-r.tar data/imagenet-r")]
pub struct UnpackArgs {
    /// A tar, tar.gz or zip file
    #[arg(value_name = "ARCHIVE")]
    archive: PathBuf,
    /// A new folder
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// The archive must have this checksum
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,
    /// Most bytes that come out, as a multiple of the archive's own
    #[arg(long, value_name = "TIMES", default_value_t = Limits::default().growth)]
    growth: u64,
}

/// Unpacks.
pub fn unpack(args: &UnpackArgs, log: &Log, quiet: bool) -> Result<(), Failure> {
    let spinner = Spinner::new(log, quiet, "files unpacked");
    let limits = Limits { growth: args.growth, ..Limits::default() };
    let done = unpack::unpack(&args.archive, &args.dir, args.sha256.as_deref(), limits, &|| spinner.one());
    spinner.finish();
    let done = done.map_err(Failure::before_writing)?;
    emit(&format!(
        "{} files, {:.1} MB in {}\n{}  {}\n",
        done.files,
        done.bytes as f64 / 1e6,
        args.dir.display(),
        done.sha256,
        args.archive.display(),
    ))
}
