//! Images on their way into a run: threads, memory, and files that cannot be read.

use std::{fs, path::Path, process::Output};

use crate::common::{cdl, said};
use serde_json::{Value, json};

/// A folder of two classes, each with eight training images and four test images, all different.
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

/// A run of one epoch over the folder with these settings of `[stream.input]`.
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
fn damaged_images_are_left_out_counted_and_named_once_with_one_outcome() {
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
        let said = said(&output);
        assert!(output.status.success(), "{input}: {said}");
        for file in damaged {
            assert_eq!(said.matches(file).count(), 1, "{input}: {file} in {said}");
        }
        assert!(said.contains("3 training and 1 test images"), "{input}: {said}");
        let log = fs::read_to_string(dir.join("log.txt")).expect("log");
        assert!(log.contains("3 training and 1 test images"), "{log}");
        let results = results(dir);
        assert_eq!(results["skipped_images"], json!({ "train": 3, "test": 1 }));
        // 13 images are left of 16, 3 full batches of 4 by either network.
        let metrics = fs::read_to_string(dir.join("metrics.jsonl")).expect("metrics");
        assert_eq!(metrics.lines().count(), 2);
        let model = fs::read(dir.join("models/task_1/student.safetensors")).expect("model");
        outcomes.push((results, model));
    }
    assert!(outcomes.windows(2).all(|pair| pair[0] == pair[1]), "threads, memory or verification count");

    for class in ["cat", "dog"] {
        (0..4).for_each(|number| damage(&root.join(format!("test/{class}/{number}.png"))));
    }
    let output = run(root, dir, "on_error=\"skip\"", true);
    assert!(!output.status.success());
    let said = said(&output);
    assert!(said.contains("of 8 test images of task 1, fewer than 1 can be read"), "{said}");
}

#[test]
fn a_damaged_image_met_in_training_ends_the_run_with_its_name() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let root = &folder.path().join("images");
    images(root);
    damage(&root.join("test/dog/2.png"));
    for input in ["workers=0", "workers=2"] {
        let output = run(root, &folder.path().join("run"), input, false);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains("test/dog/2.png: is not a readable image"), "{}", said(&output));
    }
}

/// A PNG file with a palette whose last colour lacks its blue, which the decoder panics on.
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
fn a_decoders_panic_is_told_once_and_in_words() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let root = &folder.path().join("images");
    images(root);
    fs::write(root.join("train/cat/3.png"), PANICS).expect("image");
    for workers in [0, 2] {
        let output = run(root, &folder.path().join("run"), &format!("workers={workers}"), true);
        let said = said(&output);
        assert!(!output.status.success());
        assert_eq!(said.matches("panicked").count(), 1, "{said}");
        assert!(said.contains("train/cat/3.png: is not a readable image: the decoder panicked: "), "{said}");
    }
}

#[test]
fn settings_of_the_input_are_checked_by_name() {
    let folder = tempfile::tempdir().expect("temporary folder");
    images(folder.path());
    for (input, words) in [
        ("on_error=\"ignore\"", ["input.on_error", "`stop` or `skip`"]),
        ("worker=2", ["stream.input.worker", "did you mean `workers`"]),
        ("workers=1000", ["stream.input.workers = 1000", "expected 0 to 256 threads"]),
        ("prefetch=0", ["stream.input.prefetch = 0", "expected 1 to 1000 batches"]),
    ] {
        let output = run(folder.path(), &folder.path().join("run"), input, true);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{words:?} in {said}");
    }
}
