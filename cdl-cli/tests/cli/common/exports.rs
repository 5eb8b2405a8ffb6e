//! Exported networks, and functions that modify them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use cdl_core::image::RgbImage;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::common::{TINY, cdl, stderr, succeed};

/// Runs a short quickstart with the arguments `more` in `folder/run`. Returns this folder.
pub fn run(folder: &TempDir, more: &[&str]) -> PathBuf {
    let dir = folder.path().join("run");
    let output =
        cdl(&[&["run", "configs/quickstart.toml", "--run-dir", text(&dir), "-q"][..], &TINY, more].concat());
    assert!(output.status.success(), "{more:?}: {}", stderr(&output));
    dir
}

/// Returns a path as text.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8 path")
}

/// Parses standard output as one JSON value per line.
pub fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Exports a student. Returns the temporary folder, the exported folder and an image.
pub fn exported() -> (TempDir, PathBuf, PathBuf) {
    let folder = tempfile::tempdir().expect("temporary folder");
    let run = run(&folder, &["configs/baseline/student_alone.toml"]);
    let (model, image) = (folder.path().join("student"), folder.path().join("image.png"));
    succeed(&["export", text(&run), "--student", text(&model)]);
    let refused = cdl(&["export", text(&run), "--teacher", "x"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("has not trained the teacher"), "{}", stderr(&refused));
    RgbImage::from_pixel(40, 30, [200, 100, 0].into()).save(&image).expect("image");
    (folder, model, image)
}

/// Returns the checksums and names in `SHA256SUMS`.
pub fn sums(folder: &Path) -> Vec<(String, String)> {
    let text = fs::read_to_string(folder.join("SHA256SUMS")).expect("sums");
    let pair = |line: &str| line.split_once("  ").map(|(sum, name)| (sum.to_string(), name.to_string()));
    text.lines().filter_map(pair).collect()
}

/// Changes `model.json` and updates the checksums.
pub fn edit_description(model: &Path, change: &dyn Fn(&mut Value)) {
    let file = model.join("model.json");
    let mut value: Value = serde_json::from_slice(&fs::read(&file).expect("file")).expect("JSON");
    change(&mut value);
    fs::write(&file, value.to_string()).expect("file");
    update_checksums(model);
}

/// Updates the checksums of all listed files, as an attacker could.
pub fn update_checksums(model: &Path) {
    let line = |(_, name): (String, String)| {
        let sum = Sha256::digest(fs::read(model.join(&name)).expect("file"));
        format!("{}  {name}\n", sum.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    };
    let lines: String = sums(model).into_iter().map(line).collect();
    fs::write(model.join("SHA256SUMS"), lines).expect("file");
}
