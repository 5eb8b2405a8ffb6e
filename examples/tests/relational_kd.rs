//! Test of the example `relational_kd`, run as a program.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    path::Path,
    process::{Command, Output},
};

fn relational_kd(args: &[&str]) -> Output {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut command = Command::new(env!("CARGO_BIN_EXE_relational_kd"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CDL_")) {
        command.env_remove(name);
    }
    command.args(args).current_dir(repository).output().expect("the program starts")
}

#[test]
fn a_method_outside_the_repository_is_listed_and_run_by_a_configuration() {
    let list = relational_kd(&["list"]);
    assert!(String::from_utf8_lossy(&list.stdout).contains("relational_kd"));
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().join("run");
    let dir = dir.to_str().expect("UTF-8 path");
    let mut args = vec!["run", "examples/configs/relational_kd.toml", "--run-dir", dir];
    for set in ["epochs=1", "batch_size=10", "stream.train_per_class=10", "stream.test_per_class=5"] {
        args.extend(["--set", set]);
    }
    let run = relational_kd(&args);
    let log = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{log}");
    assert!(log.contains("angle") && log.contains("distance"), "{log}");
}
