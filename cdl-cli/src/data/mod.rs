//! `cdl data`: data sets apart from any run.

mod fetch;
mod split;
mod verify;

use std::path::{Path, PathBuf};

use cdl_core::{Config, Error};
use clap::Subcommand;

use crate::{Failure, first_line, logging::Log};

/// Commands for data sets.
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Bring a data set, or the data and weights of a configuration, onto this machine
    Fetch(fetch::FetchArgs),
    /// See whether all files are there, as listed, and every image can be decoded
    Verify(verify::VerifyArgs),
    /// Draw a split of an image folder and write it as two lists
    Split(split::SplitArgs),
}

/// Runs one of them.
pub fn data(command: &DataCommand, log: &Log, quiet: bool) -> Result<(), Failure> {
    match command {
        DataCommand::Fetch(args) => fetch::fetch(args, log, quiet),
        DataCommand::Verify(args) => verify::verify(args, log, quiet),
        DataCommand::Split(args) => split::split(args),
    }
}

/// The folder of a configuration's data (`stream.path`).
fn folder_of(config: &Config) -> Result<PathBuf, Failure> {
    let path = config.run.stream.settings.get("path").and_then(|path| path.as_str());
    match path.filter(|path| !path.is_empty() && Path::new(path).is_dir()) {
        Some(path) => Ok(path.into()),
        None => {
            Err(Failure::mistake(format!("{}: `stream.path` names no folder of this machine", config.name())))
        }
    }
}

/// All that is wrong, in one failure.
fn refuse(what: &str, errors: Vec<Error>) -> Result<(), Failure> {
    if errors.is_empty() {
        return Ok(());
    }
    let lines: String = errors.iter().map(|error| format!("\n  {}", first_line(error))).collect();
    Err(Failure::mistake(format!("{} {what}:{lines}", errors.len())))
}
