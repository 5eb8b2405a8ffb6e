//! `cdl completions` and `cdl man`: completion scripts and manual pages.

use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::{
    cli::Cli,
    failure::{Failure, io},
    terminal::emit,
};

/// Prints the completion script of a shell.
pub fn completions(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "cdl", &mut script);
    emit(&String::from_utf8_lossy(&script))
}

/// Writes a manual page for the program and for each command into a folder.
pub fn man(dir: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(dir).map_err(io(dir))?;
    clap_mangen::generate_to(Cli::command(), dir).map_err(io(dir))
}
