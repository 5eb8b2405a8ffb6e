//! `cdl configs`: writes the configuration files that ship with the program.

use std::path::PathBuf;

use clap::Args;
use include_dir::{Dir, include_dir};

use crate::{
    failure::{Failure, io},
    terminal::emit,
};

/// Files of the folder `configs` of the source tree.
static CONFIGS: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/assets/configs");

/// Arguments of `cdl configs`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  cdl configs && cdl run configs/quickstart.toml")]
pub struct ConfigsArgs {
    /// Folder to create
    #[arg(default_value = "configs", value_name = "DIR")]
    dir: PathBuf,
}

/// Writes the files into a folder.
pub fn configs(args: &ConfigsArgs) -> Result<(), Failure> {
    let dir = &args.dir;
    if dir.exists() {
        let reason = "exists already; choose another folder";
        return Err(Failure::invalid(format!("{}: {reason}", dir.display())));
    }
    std::fs::create_dir_all(dir).map_err(io(dir))?;
    CONFIGS.extract(dir).map_err(io(dir))?;
    emit(&format!("{}\n", dir.display()))
}
