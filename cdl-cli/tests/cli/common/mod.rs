//! Running the program as a user does.

pub mod exports;
#[cfg(unix)]
pub mod sweeps;

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// The repository, where configurations are.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The program, to be run in the repository with nothing of the caller's environment that could change a configuration.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cdl"));
    for (name, _) in
        std::env::vars().filter(|(name, _)| name.starts_with("CDL_") || name.ends_with("_NUM_THREADS"))
    {
        command.env_remove(name);
    }
    command.current_dir(repository());
    command
}

/// `cdl ARGS`.
pub fn cdl(args: &[&str]) -> Output {
    command().args(args).output().expect("cdl starts")
}

/// `cdl ARGS`, which works.
pub fn done(args: &[&str]) -> Output {
    let output = cdl(args);
    assert!(output.status.success(), "{args:?}: {}", said(&output));
    output
}

/// What it said on standard error.
pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Options that make the quickstart a matter of seconds.
pub const SMALL: [&str; 8] = [
    "--set",
    "epochs=1",
    "--set",
    "batch_size=10",
    "--set",
    "stream.train_per_class=10",
    "--set",
    "stream.test_per_class=5",
];

/// Two tasks of five classes, two steps each: a run in about a second.
pub const TINY: [&str; 10] = [
    "--set",
    "epochs=1",
    "--set",
    "batch_size=10",
    "--set",
    "stream.tasks=2",
    "--set",
    "stream.train_per_class=4",
    "--set",
    "stream.test_per_class=2",
];
