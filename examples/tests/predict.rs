//! Tests of exported networks outside of `cdl`: in the example program, and with methods of plugins.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

/// Program `cdl` with the methods of `examples/plugin`.
const CDL: &str = env!("CARGO_BIN_EXE_with_plugin");

/// Runs a program, which must succeed.
fn succeed(program: &str, args: &[&str]) -> Output {
    let mut command = Command::new(program);
    for (name, _) in
        std::env::vars().filter(|(name, _)| name.starts_with("CDL_") || name.ends_with("_NUM_THREADS"))
    {
        command.env_remove(name);
    }
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let output = command.args(args).current_dir(repository).output().expect("the program starts");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Trains a short quickstart with the arguments `more`. Returns the paths of its exported student and of an image.
fn student(folder: &Path, more: &[&str]) -> (String, String) {
    let [run, student, image] =
        ["run", "student", "image.pgm"].map(|name| folder.join(name).display().to_string());
    let short = [
        "epochs=1",
        "batch_size=10",
        "stream.tasks=2",
        "stream.train_per_class=4",
        "stream.test_per_class=2",
    ];
    let mut args = [&["run", "configs/quickstart.toml", "--run-dir", &run, "-q"][..], more].concat();
    short.iter().for_each(|set| args.extend(["--set", set]));
    succeed(CDL, &args);
    succeed(CDL, &["export", &run, "--student", &student]);
    fs::remove_dir_all(&run).expect("the run can be removed");
    let pixels: Vec<u8> = (0..784).map(|i| (i % 251) as u8).collect();
    fs::write(&image, [b"P5 28 28 255\n".to_vec(), pixels].concat()).expect("image");
    (student, image)
}

#[test]
fn the_example_gives_the_predictions_of_cdl_predict() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (student, image) = student(folder.path(), &[]);
    let lines = |output: Output| String::from_utf8_lossy(&output.stdout).trim_end().to_string();
    let table = lines(succeed(CDL, &["predict", &student, &image, "--top", "3"]));
    let printed = lines(succeed(env!("CARGO_BIN_EXE_predict"), &[&student, &image]));
    let ours: Vec<&str> =
        printed.lines().filter_map(|line| line.strip_prefix(&format!("{image}: "))).collect();
    assert_eq!(format!("{image}  {}", ours.join(", ")), table);
    assert_eq!(ours.len(), 3);
}

#[test]
fn methods_and_networks_of_plugins_are_exported_too() {
    let folder = tempfile::tempdir().expect("temporary folder");
    // Export succeeds only if the exported folder gives the predictions of the run.
    let network = "student={ name = \"half_size\" }";
    let more = ["examples/configs/plugin.toml", "--set", network, "--set", "mode=corrected"];
    let (student, image) = student(folder.path(), &more);
    let output = succeed(CDL, &["predict", &student, &image, "--format", "json"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"logit\""));
}
