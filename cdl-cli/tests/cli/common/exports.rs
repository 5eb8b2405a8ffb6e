//! Runs, the networks that they export, and changes of these.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use cdl_core::image::RgbImage;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::common::{TINY, cdl, done, said};

/// A tiny run of the quickstart with `more`, in `folder/run`.
pub fn run(folder: &TempDir, more: &[&str]) -> PathBuf {
    let dir = folder.path().join("run");
    let output =
        cdl(&[&["run", "configs/quickstart.toml", "--run-dir", text(&dir), "-q"][..], &TINY, more].concat());
    assert!(output.status.success(), "{more:?}: {}", said(&output));
    dir
}

/// Of a path.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8 path")
}

/// What it printed, a value a line.
pub fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// The folder of an exported student, beside an image that it can be asked about.
pub fn exported() -> (TempDir, PathBuf, PathBuf) {
    let folder = tempfile::tempdir().expect("temporary folder");
    let run = run(&folder, &["configs/baseline/student_alone.toml"]);
    let (model, image) = (folder.path().join("student"), folder.path().join("image.png"));
    done(&["export", text(&run), "--student", text(&model)]);
    let refused = cdl(&["export", text(&run), "--teacher", "x"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(said(&refused).contains("has not trained the teacher"), "{}", said(&refused));
    RgbImage::from_pixel(40, 30, [200, 100, 0].into()).save(&image).expect("image");
    (folder, model, image)
}

/// Digests and names of a list.
pub fn sums(folder: &Path) -> Vec<(String, String)> {
    let text = fs::read_to_string(folder.join("SHA256SUMS")).expect("sums");
    let pair = |line: &str| line.split_once("  ").map(|(sum, name)| (sum.to_string(), name.to_string()));
    text.lines().filter_map(pair).collect()
}

/// Changes `model.json`, and the checksums with it.
pub fn describe(model: &Path, change: &dyn Fn(&mut Value)) {
    let file = model.join("model.json");
    let mut value: Value = serde_json::from_slice(&fs::read(&file).expect("file")).expect("JSON");
    change(&mut value);
    fs::write(&file, value.to_string()).expect("file");
    list(model);
}

/// Lists the files of a folder as they are now: whoever changes a file can change its checksum as well.
pub fn list(model: &Path) {
    let line = |(_, name): (String, String)| {
        let sum = Sha256::digest(fs::read(model.join(&name)).expect("file"));
        format!("{}  {name}\n", sum.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    };
    let lines: String = sums(model).into_iter().map(line).collect();
    fs::write(model.join("SHA256SUMS"), lines).expect("file");
}
