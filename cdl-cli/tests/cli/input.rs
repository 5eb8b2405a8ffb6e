//! Input pipeline: threads, cache, and files that cannot be read.

use std::{fs, path::Path, process::Output};

use crate::common::{cdl, stderr};
use serde_json::{Value, json};

/// Writes two classes, each with eight training images and four test images, all different.
fn images(root: &Path) {
    for (split, count) in [("train", 8), ("test", 4)] {
        for (class, shade) in [("cat", 0), ("dog", 90)] {
            let folder = root.join(split).join(class);
            fs::create_dir_all(&folder).expect("folder");
            for number in 0..count {
                let image = image::RgbImage::from_fn(31, 17, |x, y| {
                    [x as u8 * 8, y as u8 * 9 + shade, number * 20].into()
                });
                image.save(folder.join(format!("{number}.png"))).expect("image");
            }
        }
    }
}

fn damage(file: &Path) {
    let whole = fs::read(file).expect("image");
    fs::write(file, &whole[..whole.len() / 2]).expect("image");
}

/// Runs one epoch on the folder with the given settings of `[stream.input]`.
fn run(root: &Path, dir: &Path, input: &str, verify: bool) -> Output {
    let sets = [
        "stream.name=image_folder".to_string(),
        format!("stream.path={}", root.display()),
        "stream.transform={image_size=28}".into(),
        "stream.tasks=1".into(),
        format!("stream.verify={verify}"),
        format!("stream.input={{{input}}}"),
        "batch_size=4".into(),
        "epochs=1".into(),
    ];
    let mut args =
        vec!["run", "configs/quickstart.toml", "--overwrite", "--run-dir", dir.to_str().expect("path")];
    for set in &sets {
        args.extend(["--set", set]);
    }
    cdl(&args)
}

fn results(dir: &Path) -> Value {
    let mut results: Value =
        serde_json::from_slice(&fs::read(dir.join("results.json")).expect("results")).expect("JSON");
    for measured in ["wall_seconds", "peak_memory_bytes"] {
        results.as_object_mut().expect("object").remove(measured);
    }
    results
}

#[test]
fn damaged_images_are_skipped_counted_and_named_once() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let root = &folder.path().join("images");
    images(root);
    let damaged = ["train/cat/3.png", "train/dog/0.png", "train/dog/1.png", "test/dog/2.png"];
    damaged.iter().for_each(|file| damage(&root.join(file)));

    let dir = &folder.path().join("run");
    let mut outcomes = Vec::new();
    for (input, verify) in [
        ("workers=0, cache_mb=0", true),
        ("workers=0", false),
        ("workers=1, prefetch=1", false),
        ("workers=3, cache_mb=0", false),
        ("workers=5", true),
    ] {
        let output = run(root, dir, &format!("on_error=\"skip\", {input}"), verify);
        let stderr = stderr(&output);
        assert!(output.status.success(), "{input}: {stderr}");
        for file in damaged {
            assert_eq!(stderr.matches(file).count(), 1, "{input}: {file} in {stderr}");
        }
        assert!(stderr.contains("3 training and 1 test image"), "{input}: {stderr}");
        let log = fs::read_to_string(dir.join("log.txt")).expect("log");
        assert!(log.contains("3 training and 1 test image"), "{log}");
        let results = results(dir);
        assert_eq!(results["skipped_images"], json!({ "train": 3, "test": 1 }));
        // 13 of 16 images remain: 3 full batches of 4 for each network.
        let metrics = fs::read_to_string(dir.join("metrics.jsonl")).expect("metrics");
        assert_eq!(metrics.lines().count(), 2);
        let model = fs::read(dir.join("models/task_1/student.safetensors")).expect("model");
        outcomes.push((results, model));
    }
    assert!(
        outcomes.windows(2).all(|pair| pair[0] == pair[1]),
        "the outcome depends on threads, cache or verification"
    );

    for class in ["cat", "dog"] {
        (0..4).for_each(|number| damage(&root.join(format!("test/{class}/{number}.png"))));
    }
    let output = run(root, dir, "on_error=\"skip\"", true);
    assert!(!output.status.success());
    let stderr = stderr(&output);
    assert!(stderr.contains("of 8 test images of task 1, fewer than 1 can be read"), "{stderr}");
}

#[test]
fn a_damaged_image_ends_the_run_with_an_error_that_names_it() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let root = &folder.path().join("images");
    images(root);
    damage(&root.join("test/dog/2.png"));
    for input in ["workers=0", "workers=2"] {
        let output = run(root, &folder.path().join("run"), input, false);
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(stderr(&output).contains("test/dog/2.png: is not a readable image"), "{}", stderr(&output));
    }
}

/// PNG file with an incomplete palette, on which the decoder panics.
const PANICS: &[u8] = &[
    137, 80, 78, 71, 13, 10, 26, 10, 0, 0, 0, 13, 73, 72, 68, 82, 0, 0, 0, 9, 0, 0, 0, 6, 4, 3, 0, 0, 0, 227,
    233, 169, 246, 0, 0, 0, 47, 80, 76, 84, 69, 247, 255, 85, 255, 219, 51, 137, 227, 153, 0, 240, 149, 240,
    136, 107, 206, 70, 133, 34, 127, 85, 35, 69, 128, 255, 40, 225, 255, 44, 24, 255, 2, 152, 179, 0, 143,
    78, 11, 128, 33, 2, 114, 0, 13, 188, 0, 6, 161, 80, 206, 35, 0, 0, 0, 4, 116, 82, 78, 83, 255, 255, 255,
    0, 64, 42, 169, 244, 0, 0, 0, 47, 73, 68, 65, 84, 120, 218, 1, 36, 0, 219, 255, 0, 72, 50, 185, 18, 16,
    3, 190, 12, 0, 49, 162, 2, 17, 212, 231, 247, 32, 0, 149, 255, 154, 27, 224, 4, 254, 105, 207, 45, 16, 0,
    224, 141, 31, 225, 144, 230, 126, 14, 120, 152, 11, 172, 87, 0, 0, 0, 0, 73, 69, 78, 68, 174, 66, 96,
    130,
];

#[test]
fn a_panic_of_the_decoder_is_one_readable_error() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let root = &folder.path().join("images");
    images(root);
    fs::write(root.join("train/cat/3.png"), PANICS).expect("image");
    for workers in [0, 2] {
        let output = run(root, &folder.path().join("run"), &format!("workers={workers}"), true);
        let stderr = stderr(&output);
        assert!(!output.status.success());
        assert_eq!(stderr.matches("panicked").count(), 1, "{stderr}");
        assert!(
            stderr.contains("train/cat/3.png: is not a readable image: the decoder panicked: "),
            "{stderr}"
        );
    }
}

#[test]
fn invalid_input_settings_are_errors_that_name_the_key() {
    let folder = tempfile::tempdir().expect("temporary folder");
    images(folder.path());
    for (input, words) in [
        ("on_error=\"ignore\"", ["input.on_error", "`stop` or `skip`"]),
        ("worker=2", ["stream.input.worker", "did you mean `workers`"]),
        ("workers=1000", ["stream.input.workers = 1000", "expected 0 to 256 threads"]),
        ("prefetch=0", ["stream.input.prefetch = 0", "expected 1 to 1000 batches"]),
    ] {
        let output = run(folder.path(), &folder.path().join("run"), input, true);
        let stderr = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(words.iter().all(|word| stderr.contains(word)), "{words:?} in {stderr}");
    }
}
