//! `cdl check`: reports all errors at once, and correct counts.

use std::{fs, path::Path, process::Output};

use crate::common::{TINY, cdl, repository, stderr};
use serde_json::Value;

fn check(more: &[&str]) -> Output {
    cdl(&[&["check", "configs/quickstart.toml"][..], more].concat())
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", stderr(output)))
}

/// Asserts exit code 2 and exactly one error for each of `words`.
fn expect_errors(output: &Output, words: &[&[&str]]) {
    let stderr = stderr(output);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    let lines: Vec<&str> = stderr.lines().skip(1).collect();
    assert_eq!(lines.len(), words.len(), "{stderr}");
    for words in words {
        let found = lines.iter().any(|line| words.iter().all(|word| line.contains(word)));
        assert!(found, "{words:?} is missing in: {stderr}");
    }
}

#[test]
fn the_quickstart_passes_with_correct_counts() {
    let output = check(&["--json", "--steps", "1", "--set", "batch_size=4"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let report = report(&output);
    assert_eq!(report["errors"], serde_json::json!([]));
    assert_eq!(report["not_checked"], serde_json::json!([]));
    let data = &report["data"];
    assert_eq!((data["stream"].as_str(), data["classes"].as_u64()), (Some("embedded"), Some(10)));
    let tasks = data["tasks"].as_array().unwrap();
    assert_eq!(tasks.len(), 5);
    for task in tasks {
        for (key, expected) in
            [("classes", 2), ("train", 500), ("test", 200), ("looked_at", 16), ("damaged", 0)]
        {
            assert_eq!(task[key].as_u64(), Some(expected), "{key}");
        }
    }
    for (network, role) in report["networks"].as_array().unwrap().iter().zip(["teacher", "student"]) {
        assert_eq!(network["role"], role);
        let weights = repository().join(format!("plugins/assets/micro_vit/{role}.safetensors"));
        assert_eq!(network["provenance"]["sha256"], sha256(&weights));
        assert_eq!(network["normalization"]["mean"].as_array().map(Vec::len), Some(3));
    }
    let disk = &report["disk"];
    assert!(disk["needed"].as_u64().unwrap() > 1 << 20 && disk["free"].as_u64() > disk["needed"].as_u64());
    // 3 epochs of 5 tasks, 500 / 4 steps each; after each task all tasks so far are tested.
    let time = &report["time"];
    for network in time["networks"].as_array().unwrap() {
        assert_eq!(network["steps"].as_u64(), Some(3 * 5 * 125));
    }
    assert_eq!(time["test_images"].as_u64(), Some(200 * (1 + 2 + 3 + 4 + 5)));
    let seconds = |value: &Value| value.as_f64().unwrap();
    let training: f64 =
        time["networks"].as_array().unwrap().iter().map(|n| 1875.0 * seconds(&n["step_seconds"])).sum();
    let testing = 3000.0 / seconds(&time["test_images_per_second"]);
    assert!((seconds(&time["seconds"]) - training - testing).abs() < 1e-6 * training);
}

fn sha256(file: &Path) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(fs::read(file).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A file without `config.json` does not state the number of heads. The network has 2.
#[test]
fn a_guessed_number_of_heads_is_reported_with_its_setting() {
    let weights = repository().join("plugins/assets/micro_vit/student.safetensors");
    let weights = format!("student.weights={}", weights.display());
    let bare = ["--steps", "0", "--set", &weights, "--set", "student.normalize=none"];
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("run");
    let run = |more: &[&str]| {
        let run = ["run", "configs/quickstart.toml", "--overwrite", "--run-dir", dir.to_str().unwrap()];
        let output = cdl(&[&run[..], &TINY, &bare[2..], more].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        let record = fs::read_to_string(dir.join("run.json")).unwrap();
        let record: Value = serde_json::from_str(&record).unwrap();
        (stderr(&output), record["student"]["heads_from"].as_str().unwrap().to_string())
    };
    let warning =
        "does not state the number of attention heads; using 1 (width 64 / 64). Set `student.heads`";
    let guess = check(&bare);
    let table = String::from_utf8_lossy(&guess.stdout).into_owned();
    assert!(table.contains("width 64, 1 head guessed from the width, patches of 4 px"), "{table}");
    assert!(stderr(&guess).contains(warning), "{}", stderr(&guess));
    let (log, from) = run(&[]);
    assert!(log.contains("width 64, 1 head guessed from the width), learner"), "{log}");
    assert!(log.contains(warning) && !log.contains("teacher.heads"), "{log}");
    assert_eq!(from, "guessed_from_width");

    let set = ["--set", "student.heads=2"];
    let stated = check(&[&bare[..], &set].concat());
    let table = String::from_utf8_lossy(&stated.stdout).into_owned();
    assert!(table.contains("width 64, 2 heads, patches of 4 px"), "{table}");
    assert_eq!(stderr(&stated), "");
    let (log, from) = run(&set);
    assert!(log.contains("width 64, 2 heads), learner") && !log.contains("student.heads"), "{log}");
    assert_eq!(from, "stated");
}

#[test]
fn image_sizes_far_from_that_of_the_networks_are_warnings() {
    for (size, warns) in [(12, true), (16, false), (28, false), (52, false), (56, true)] {
        let output = check(&["--steps", "0", "--set", &format!("stream.transform.image_size={size}")]);
        assert!(output.status.success(), "{}", stderr(&output));
        let warning = format!("images have {size} px, but the network was trained on 28 px");
        assert_eq!(stderr(&output).contains(&warning), warns, "{}", stderr(&output));
    }
}

#[test]
fn all_errors_are_reported_at_once_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("run");
    let output = check(&[
        "--run-dir",
        dir.to_str().unwrap(),
        "--set",
        "stream={name=\"image_folder\", path=\"no/such/folder\", tasks=2, transform={image_size=28}}",
        "--set",
        "teacher.weights=no/such/teacher.safetensors",
        "--set",
        "learner.length=7",
        "--set",
        "optimizer.name=adagrad",
        "--set",
        "schedule.gamma=-1",
    ]);
    expect_errors(
        &output,
        &[
            &["no/such/folder"],
            &["no/such/teacher.safetensors"],
            &["`learner.length = 7`", "even number"],
            &["optimizer.name", "adagrad"],
            &["`schedule.gamma = -1`"],
        ],
    );
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(printed.contains("not checked: distiller"), "{printed}");
    assert!(printed.contains("this run would fail"), "{printed}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "something was written");
}

#[test]
fn every_key_of_every_layer_is_checked() {
    let set = |values: &[&str]| {
        let more: Vec<&str> = values.iter().flat_map(|value| ["--set", value]).collect();
        check(&[&["--steps", "0"][..], &more].concat())
    };
    expect_errors(
        &set(&["learner.pol=3", "learner.lenth=3", "batchsize=2", "optimizer.lr=-1", "distiller.alpha=1.5"]),
        &[
            &["unknown key `learner.pol`"],
            &["unknown key `learner.lenth`"],
            &["unknown key `batchsize`"],
            &["`optimizer.lr = -1`"],
            &["`distiller.alpha = 1.5`"],
        ],
    );
    expect_errors(
        &set(&["stream.tasks=3", "batch_size=0"]),
        &[&["`stream.tasks = 3`"], &["`batch_size = 0`"]],
    );
    expect_errors(
        &set(&["batch_size=501", "student.depth=9"]),
        &[&["at most 500"], &["`student.depth = 9`"]],
    );
    let missing = cdl(&["check", "no/such.toml", "nor/this.toml", "--set", "seed"]);
    expect_errors(&missing, &[&["no/such.toml"], &["nor/this.toml"], &["key=value"]]);
}

#[test]
fn a_taken_run_directory_and_damaged_images_are_found() {
    let folder = tempfile::tempdir().unwrap();
    for split in ["train", "test"] {
        for class in ["cat", "dog"] {
            let images = folder.path().join(split).join(class);
            fs::create_dir_all(&images).unwrap();
            for number in 0..4 {
                image::RgbImage::new(28, 28).save(images.join(format!("{number}.png"))).unwrap();
            }
        }
    }
    let damaged = ["train/cat/1.png", "test/dog/3.png"].map(|name| folder.path().join(name));
    damaged.iter().for_each(|file| fs::write(file, "no image").unwrap());
    let path = folder.path().to_str().unwrap();
    let stream = format!(
        "stream={{name=\"image_folder\", path=\"{path}\", transform={{image_size=28}}, train_per_class=4}}"
    );
    let check = |more: &[&str]| {
        check(&[&["--json", "--steps", "0", "--set", "batch_size=4", "--set", &stream][..], more].concat())
    };
    let output = check(&["--run-dir", path]);
    expect_errors(&output, &[&["train/cat/1.png"], &["test/dog/3.png"], &["already exists"]]);
    let found = report(&output);
    assert_eq!(found["data"]["tasks"][0]["looked_at"], 16);
    assert_eq!(found["data"]["tasks"][0]["damaged"], 2);

    // `--images` checks a few images only: the first and the last ones of each split.
    let few = check(&["--set", "stream.verify=false", "--images", "2"]);
    expect_errors(&few, &[&["test/dog/3.png"]]);
    let skipped = check(&["--set", "stream.input.on_error=skip"]);
    assert!(skipped.status.success(), "{}", stderr(&skipped));
}
