//! Functions that run the program as a user does.

pub mod exports;
#[cfg(unix)]
pub mod sweeps;

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// Returns the root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Command that runs the program in the repository, without environment variables that change settings or threads.
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

/// Runs `cdl ARGS`.
pub fn cdl(args: &[&str]) -> Output {
    command().args(args).output().expect("cdl starts")
}

/// Runs `cdl ARGS` and asserts success.
pub fn succeed(args: &[&str]) -> Output {
    let output = cdl(args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    output
}

/// Returns standard error as text.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Options that shorten the quickstart to a few seconds.
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

/// Options that shorten the quickstart to about a second: two tasks of five classes with two steps each.
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
