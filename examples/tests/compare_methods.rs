//! The table of methods as its user makes it.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

fn compare(out: &Path, more: &[&str]) -> Output {
    let mut args = vec!["configs/quickstart.toml", "--out", out.to_str().expect("UTF-8 path")];
    args.extend(["--learners", "linear,apt", "--distillers", "none,kd", "--seeds", "1,2"]);
    for set in ["epochs=1", "batch_size=10", "stream.train_per_class=5", "stream.test_per_class=2"] {
        args.extend(["--set", set]);
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_compare_methods"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CDL_")) {
        command.env_remove(name);
    }
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    command.args(args).args(more).current_dir(repository).output().expect("the program starts")
}

#[test]
fn a_table_of_all_cells_is_made_once_and_not_mixed() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let out = folder.path().join("methods");
    let first = compare(&out, &[]);
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    let table = fs::read_to_string(out.join("table.md")).expect("table");
    assert!(table.contains("| learner | teacher | none | kd |"), "{table}");
    assert_eq!(
        table.lines().filter(|line| line.starts_with("| linear |") && line.contains('±')).count(),
        3,
        "{table}"
    );
    let finished =
        fs::metadata(out.join("apt-kd-2/results.json")).and_then(|meta| meta.modified()).expect("results");
    assert!(compare(&out, &[]).status.success());
    let again =
        fs::metadata(out.join("apt-kd-2/results.json")).and_then(|meta| meta.modified()).expect("results");
    assert_eq!(finished, again, "finished cells are not run again");
    // A run that was to stop early is finished as well.
    let short = folder.path().join("short");
    let time = || {
        assert!(compare(&short, &["--set", "stream.max_tasks=1"]).status.success());
        fs::metadata(short.join("apt-kd-2/results.json")).and_then(|meta| meta.modified()).expect("results")
    };
    assert_eq!(time(), time(), "finished cells are not run again");
    let other = compare(&out, &["--set", "optimizer.lr=1e-4"]);
    assert!(String::from_utf8_lossy(&other.stderr).contains("was run with another configuration"));
}
