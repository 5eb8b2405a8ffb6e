//! Rust toolchain of the user: rustc and cargo.

use std::{
    io::BufReader,
    path::Path,
    process::{Command, Stdio},
};

use cargo_metadata::{Artifact, Message};

use crate::failure::Failure;

/// Compiler command: `RUSTC`, or the compiler that rustup selects in `folder`.
pub fn compiler(folder: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    command.current_dir(folder);
    command
}

/// Runs the compiler selected in `folder` with `arguments` and returns its standard output.
pub fn rustc(arguments: &[&str], folder: &Path) -> Result<String, Failure> {
    let output = compiler(folder).args(arguments).output().map_err(|e| {
        Failure::invalid(format!(
            "rustc cannot be run ({e}): install Rust from https://rustup.rs, or set RUSTC"
        ))
    })?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(Failure::working(format!("rustc: {}", String::from_utf8_lossy(&output.stderr).trim()))),
    }
}

/// Cargo command: `CARGO`, or `cargo` on the path.
pub fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs a cargo command that has the option `--message-format=json-render-diagnostics`. Returns its artifacts,
/// including those that were up to date, or `None` if the build failed. In that case cargo has printed the errors.
pub fn artifacts(command: &mut Command) -> Result<Option<Vec<Artifact>>, Failure> {
    let failed = |e: std::io::Error| Failure::working(format!("cargo: {e}"));
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(failed)?;
    let messages = child.stdout.take().map(BufReader::new).into_iter().flat_map(Message::parse_stream);
    let artifacts = messages.filter_map(|message| match message {
        Ok(Message::CompilerArtifact(artifact)) => Some(artifact),
        _ => None,
    });
    let artifacts = artifacts.collect();
    Ok(child.wait().map_err(failed)?.success().then_some(artifacts))
}
