//! Exported networks through the program: they predict what the run's networks do, to the bit, when nothing of the run is
//! left.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use cdl_core::{Config, Experiment, Role, candle_core::Tensor, image::RgbImage, run_dir::read_model};
use common::{TINY, cdl, said};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// A tiny run of the quickstart with `more`, in `folder/run`.
fn run(folder: &TempDir, more: &[&str]) -> PathBuf {
    let dir = folder.path().join("run");
    let output =
        cdl(&[&["run", "configs/quickstart.toml", "--run-dir", text(&dir), "-q"][..], &TINY, more].concat());
    assert!(output.status.success(), "{more:?}: {}", said(&output));
    dir
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8 path")
}

fn done(args: &[&str]) -> Output {
    let output = cdl(args);
    assert!(output.status.success(), "{args:?}: {}", said(&output));
    output
}

/// Sizes of batches. The last digits of a product of matrices depend on how many rows it has, so what is compared is what
/// the run's networks answer to the same batches.
const BATCHES: [usize; 3] = [10, 1, 64];

/// What the networks of a run answer to all test images up to a task, in batches of each size.
struct Answers {
    images: Vec<RgbImage>,
    classes: Vec<String>,
    seen: usize,
    logits: Vec<(Role, usize, Vec<Vec<f32>>)>,
}

/// By the run's own networks after task `after`, from 1.
fn answers(run: &Path, after: usize) -> Answers {
    cdl_plugins::link();
    let config = Config::load(&[run.join("config.toml")], &[]).expect("configuration");
    let mut experiment = Experiment::build(&config).expect("experiment");
    let task = experiment.stream.tasks()[after - 1].clone();
    let roles = [Role::Student, Role::Teacher];
    for role in roles {
        let state = read_model(run, task.index, role, &experiment.device).expect("model");
        experiment.trainer.restore(role, &task, &state).expect("restored");
    }
    let mut pixels = Vec::new();
    for seen in 0..after {
        let batches = experiment.stream.test_batches(seen, config.run.batch_size);
        pixels.extend(batches.map(|batch| batch.expect("batch").pixels));
    }
    let pixels = Tensor::cat(&pixels, 0).expect("pixels");
    let count = pixels.dim(0).expect("images");
    let values = |image: Tensor| image.flatten_all().expect("values").to_vec1().expect("values");
    let images =
        pixels.chunk(count, 0).expect("images").into_iter().map(|image| picture(&values(image))).collect();
    let mut logits = Vec::new();
    for (role, size) in roles.into_iter().flat_map(|role| BATCHES.map(|size| (role, size))) {
        let mut rows = Vec::new();
        for start in (0..count).step_by(size) {
            let batch = pixels.narrow(0, start, size.min(count - start)).expect("batch");
            let answer = experiment.trainer.predict(role, &batch).expect("logits");
            rows.extend(answer.to_vec2::<f32>().expect("logits"));
        }
        logits.push((role, size, rows));
    }
    Answers { images, classes: experiment.stream.classes().to_vec(), seen: task.seen(), logits }
}

/// The image of 28 px whose pixels these are, plane by plane.
fn picture(values: &[f32]) -> RgbImage {
    assert_eq!(values.len(), 3 * 28 * 28);
    RgbImage::from_fn(28, 28, |x, y| {
        let value = |plane: u32| (values[(plane * 784 + y * 28 + x) as usize] * 255.0).round() as u8;
        [value(0), value(1), value(2)].into()
    })
}

/// Files with these images, named in their order.
fn save(images: &[RgbImage], folder: &Path) {
    fs::create_dir_all(folder).expect("folder");
    for (number, image) in images.iter().enumerate() {
        image.save(folder.join(format!("{number:04}.png"))).expect("image");
    }
}

fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Compares what is predicted by the folder `model` with `expected`, to the bit.
fn compare(model: &Path, images: &Path, role: Role, expected: &Answers, batch: usize) {
    let args = [
        "predict",
        text(model),
        text(images),
        "--format",
        "json",
        "--top",
        "100",
        "--batch-size",
        &batch.to_string(),
    ];
    let lines = lines(&done(&args));
    assert_eq!(lines.len(), expected.images.len());
    let logits =
        &expected.logits.iter().find(|(of, size, _)| (*of, *size) == (role, batch)).expect("answers").2;
    for (number, (line, logits)) in lines.iter().zip(logits).enumerate() {
        assert!(line["image"].as_str().expect("path").ends_with(&format!("{number:04}.png")));
        let predictions = line["predictions"].as_array().expect("predictions");
        assert_eq!(predictions.len(), expected.seen, "only classes that were learned");
        let mut total = 0.0;
        for prediction in predictions {
            let index = prediction["index"].as_u64().expect("index") as usize;
            assert_eq!(prediction["class"], expected.classes[index]);
            let logit = prediction["logit"].as_f64().expect("logit") as f32;
            assert_eq!(logit.to_bits(), logits[index].to_bits(), "{role:?}, image {number}, class {index}");
            total += prediction["probability"].as_f64().expect("probability");
        }
        assert!((total - 1.0).abs() < 1e-4, "{total}");
        let order: Vec<f64> = predictions.iter().map(|p| p["logit"].as_f64().expect("logit")).collect();
        assert!(order.is_sorted_by(|a, b| a >= b), "the best come first: {order:?}");
    }
}

/// Names of the tensors in a file.
fn tensors(file: &Path) -> Vec<String> {
    let bytes = fs::read(file).expect("file");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    tensors.names().into_iter().map(String::from).collect()
}

#[test]
fn every_learner_and_distiller_predicts_what_the_run_predicts() {
    let learner = |name: &str| format!("configs/learner/{name}.toml");
    let distillers = |list: &str| format!("distillers=[{list}]");
    let two = distillers(r#"{ name = "review_kd" }, { name = "kd_prompts", alpha = 0.3 }, { name = "dkd" }"#);
    let pairs: [(&str, Vec<&str>); 7] = [
        ("coda_prompt", vec!["configs/distiller/kd_prompts.toml"]),
        ("l2p", vec!["configs/distiller/kd.toml", "--set", "query=own"]),
        ("l2p_deep", vec!["configs/distiller/none.toml", "configs/mode/corrected.toml"]),
        ("dual_prompt", vec!["configs/distiller/fitnets.toml", "--set", "student.depth=3"]),
        ("apt", vec!["--set", &two]),
        ("linear", vec!["configs/distiller/review_kd.toml", "--set", "teacher.learner.name=coda_prompt"]),
        // Classes that it has not learned yet have logits too, and are no answers.
        (
            "apt",
            vec![
                "configs/distiller/dkd.toml",
                "--set",
                "stream.tasks=5",
                "--set",
                "stream.max_tasks=2",
                "--set",
                "batch_size=8",
            ],
        ),
    ];
    for (name, more) in pairs {
        let folder = tempfile::tempdir().expect("temporary folder");
        let learner = learner(name);
        let run = run(&folder, &[&[learner.as_str()][..], &more].concat());
        let expected = answers(&run, 2);
        let images = folder.path().join("images");
        save(&expected.images, &images);
        let [student, teacher] = ["student", "teacher"].map(|role| folder.path().join(role));
        done(&["export", text(&run), "--student", text(&student), "--teacher", text(&teacher)]);
        fs::remove_dir_all(&run).expect("the run is gone");
        for batch in BATCHES {
            compare(&student, &images, Role::Student, &expected, batch);
        }
        compare(&teacher, &images, Role::Teacher, &expected, 10);
    }
}

#[test]
fn a_folder_holds_what_predicting_needs_and_no_more() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let list = r#"distillers=[{ name = "review_kd" }, { name = "kd_prompts" }, { name = "fitnets" }]"#;
    let run = run(&folder, &["--set", list, "--set", "student.depth=3", "--set", "query=student"]);
    let [student, teacher] = ["student", "teacher"].map(|role| folder.path().join("models").join(role));
    let output = done(&[
        "export",
        text(&run),
        "--student",
        text(&student),
        "--teacher",
        text(&teacher),
        "--task",
        "1",
    ]);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        printed.contains("student after task 1 of 2, 5 classes") && printed.contains("frozen"),
        "{printed}"
    );
    let frozen = tensors(&student.join("network/model.safetensors"));
    assert!(frozen.iter().any(|name| name.starts_with("blocks.2.")), "{frozen:?}");
    assert!(!frozen.iter().any(|name| name.starts_with("blocks.3.")), "{frozen:?}");
    let trained = tensors(&student.join("trained.safetensors"));
    assert!(
        trained.iter().any(|name| name.starts_with("kd_prompt.")) && trained.contains(&"last.weight".into())
    );
    let of_training = |name: &&String| name.contains("ReviewKD") || name.contains("project");
    assert!(!trained.iter().any(|name| of_training(&name)), "{trained:?}");
    assert!(!student.join("query").exists() && teacher.join("query/model.safetensors").exists());
    // The checksums are those of sha256sum, and every file is among them.
    let sums = fs::read_to_string(student.join("SHA256SUMS")).expect("sums");
    for line in sums.lines() {
        let (sum, name) = line.split_once("  ").expect("line");
        let found = Sha256::digest(fs::read(student.join(name)).expect("file"));
        assert_eq!(found.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), sum, "{name}");
    }
    assert_eq!(sums.lines().count(), 5);
    // The classes of the first task alone, as they were then.
    let expected = answers(&run, 1);
    save(&expected.images, &folder.path().join("images"));
    compare(&student, &folder.path().join("images"), Role::Student, &expected, 10);

    // What is there is kept, unless it is an exported network that is to be replaced.
    let again = ["export", text(&run), "--student", text(&student)];
    let refused = cdl(&again);
    assert_eq!(refused.status.code(), Some(2));
    assert!(said(&refused).contains("--overwrite"), "{}", said(&refused));
    done(&[&again[..], &["--overwrite"]].concat());
    // What somebody else put there stays.
    let thesis = student.join("network/thesis.tex");
    fs::write(&thesis, "years").expect("written");
    let refused = cdl(&[&again[..], &["--overwrite"]].concat());
    assert_eq!(refused.status.code(), Some(2));
    assert!(said(&refused).contains("thesis.tex: is no part of an exported model"), "{}", said(&refused));
    fs::remove_file(&thesis).expect("still there");
    // Another setting is another network.
    let refused = cdl(&[&again[..], &["--overwrite", "--set", "optimizer.lr=0.5"]].concat());
    assert_eq!(refused.status.code(), Some(2));
    assert!(said(&refused).contains("optimizer.lr"), "{}", said(&refused));
    let model: Value =
        serde_json::from_slice(&fs::read(student.join("model.json")).expect("file")).expect("JSON");
    assert_eq!(model["tasks"].as_array().map(Vec::len), Some(2));
    for (args, word) in [
        (vec!["export", text(&run), "--student", text(&run), "--overwrite"], "not overwritten"),
        (vec!["export", text(&run)], "--student"),
        (vec!["export", text(&run), "--student", "x", "--task", "3"], "expected 1 to 2"),
        (vec!["export", text(&student), "--student", "x"], "results.json"),
    ] {
        let output = cdl(&args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(said(&output).contains(word), "{args:?}: {}", said(&output));
    }
    let left: Vec<_> = fs::read_dir(folder.path().join("models")).expect("folder").collect();
    assert_eq!(left.len(), 2, "nothing unfinished is left: {left:?}");
}

/// The folder of an exported student, beside an image that it can be asked about.
fn exported() -> (TempDir, PathBuf, PathBuf) {
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

#[test]
fn images_are_read_from_files_and_folders_and_bad_ones_are_named() {
    let (folder, model, image) = exported();
    let images = folder.path().join("images");
    fs::create_dir_all(images.join("b")).expect("folder");
    for name in ["b/2.png", "a.png", "c.jpg"] {
        fs::copy(&image, images.join(name)).expect("copy");
    }
    fs::write(images.join("notes.txt"), "no image").expect("file");
    let table = done(&["predict", text(&model), text(&image), text(&images), "--top", "2"]);
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    let ends = ["image.png", "a.png", "2.png", "c.jpg"];
    assert_eq!(table.lines().count(), ends.len(), "{table}");
    for (line, end) in table.lines().zip(ends) {
        let (path, classes) = line.split_once("  ").expect("columns");
        assert!(path.trim_end().ends_with(end), "{table}");
        assert_eq!(classes.matches(" %").count(), 2, "{table}");
    }
    fs::write(images.join("b/1.png"), b"\x89PNG\r\n\x1a\nbroken").expect("file");
    let gone = folder.path().join("gone.png");
    let output = cdl(&["predict", text(&model), text(&images), text(&gone), "--format", "json"]);
    assert_eq!(output.status.code(), Some(2));
    let message = said(&output);
    assert!(message.contains("2 of 5 images cannot be read") && message.contains("b/1.png"), "{message}");
    let lines = lines(&output);
    let errors: Vec<bool> = lines.iter().map(|line| line["error"].is_string()).collect();
    assert_eq!(errors, [false, true, false, false, true], "{lines:?}");
    assert_eq!(lines[0]["predictions"].as_array().map(Vec::len), Some(5));
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).expect("folder");
    let output = cdl(&["predict", text(&model), text(&empty)]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("holds no images"), "{}", said(&output));
}

#[test]
fn what_is_damaged_is_named() {
    let (folder, model, image) = exported();
    let copy = folder.path().join("copy");
    let predict = || cdl(&["predict", text(&copy), text(&image)]);
    let fresh = || {
        let _ = fs::remove_dir_all(&copy);
        fs::create_dir_all(copy.join("network")).expect("folder");
        for file in sums(&model).iter().map(|(_, name)| name.clone()).chain(["SHA256SUMS".to_string()]) {
            fs::copy(model.join(&file), copy.join(&file)).expect("copy");
        }
    };
    let cut = |name: &str| {
        let bytes = fs::read(copy.join(name)).expect("file");
        fs::write(copy.join(name), &bytes[..bytes.len() - 100]).expect("file");
    };
    let edit = |name: &str, from: &str, to: &str| {
        let text = fs::read_to_string(copy.join(name)).expect("file");
        assert!(text.contains(from), "{from} in {name}");
        fs::write(copy.join(name), text.replacen(from, to, 1)).expect("file");
    };
    // Whoever changes a file can change its checksum as well.
    let reckon = || {
        let line = |(_, name): (String, String)| {
            let sum = Sha256::digest(fs::read(copy.join(&name)).expect("file"));
            format!("{}  {name}\n", sum.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
        };
        let lines: String = sums(&copy).into_iter().map(line).collect();
        fs::write(copy.join("SHA256SUMS"), lines).expect("file");
    };
    type Damage<'a> = (&'a str, Box<dyn Fn() + 'a>, [&'a str; 2]);
    let cases: Vec<Damage<'_>> = vec![
        (
            "a file cut short",
            Box::new(|| cut("network/model.safetensors")),
            ["network/model.safetensors", "is damaged"],
        ),
        (
            "trained tensors cut short",
            Box::new(|| cut("trained.safetensors")),
            ["trained.safetensors", "is damaged"],
        ),
        (
            "cut short and listed so",
            Box::new(|| {
                cut("trained.safetensors");
                reckon()
            }),
            ["trained.safetensors", "state of"],
        ),
        (
            "weights cut short and listed so",
            Box::new(|| {
                cut("network/model.safetensors");
                reckon()
            }),
            ["network/model.safetensors", "not a complete safetensors file"],
        ),
        (
            "another name of a class",
            Box::new(|| edit("classes.json", "Bag", "Bog")),
            ["classes.json", "is damaged"],
        ),
        (
            "no names",
            Box::new(|| fs::remove_file(copy.join("classes.json")).expect("removed")),
            ["classes.json", "is missing"],
        ),
        (
            "no names for all classes",
            Box::new(|| {
                fs::write(copy.join("classes.json"), "[\"a\"]").expect("file");
                reckon()
            }),
            ["model.json", "within 1 classes"],
        ),
        ("an edited checksum", Box::new(|| edit("SHA256SUMS", "0", "1")), ["SHA-256", "is damaged"]),
        (
            "a file that is not listed",
            Box::new(|| {
                let text: String = fs::read_to_string(copy.join("SHA256SUMS"))
                    .expect("file")
                    .lines()
                    .filter(|line| !line.ends_with("trained.safetensors"))
                    .map(|line| format!("{line}\n"))
                    .collect();
                fs::write(copy.join("SHA256SUMS"), text).expect("file")
            }),
            ["SHA256SUMS", "does not list trained.safetensors"],
        ),
        (
            "no list",
            Box::new(|| fs::remove_file(copy.join("SHA256SUMS")).expect("removed")),
            ["SHA256SUMS", "cannot be read"],
        ),
        (
            "a list that is none",
            Box::new(|| fs::write(copy.join("SHA256SUMS"), "hello").expect("file")),
            ["SHA256SUMS", "line 1"],
        ),
        (
            "a newer format",
            Box::new(|| edit("model.json", "\"format\": 1", "\"format\": 2")),
            ["model.json", "has format 2, and this version of cdl reads 1"],
        ),
        (
            "an edited description",
            Box::new(|| edit("model.json", "\"seed\": 1", "\"seed\": 2")),
            ["model.json", "is damaged"],
        ),
        (
            "tasks that are none",
            Box::new(|| {
                edit("model.json", "\"start\": 5", "\"start\": 4");
                reckon()
            }),
            ["model.json", "`tasks` has 4..10"],
        ),
        (
            "a learner that is not there",
            Box::new(|| {
                edit("model.json", "coda_prompt", "koda_prompt");
                reckon()
            }),
            ["koda_prompt", "did you mean `coda_prompt`"],
        ),
        (
            "a setting that does not fit",
            Box::new(|| {
                edit("model.json", "\"length\": 8", "\"length\": 10");
                reckon()
            }),
            ["trained.safetensors", "expected [20, 10, 64]"],
        ),
        (
            "another image size",
            Box::new(|| {
                edit("model.json", "\"image_size\": 28", "\"image_size\": 5600");
                reckon()
            }),
            ["network/model.safetensors", "28 px, not of 5600"],
        ),
        (
            "no description",
            Box::new(|| fs::write(copy.join("model.json"), "[").expect("file")),
            ["model.json", "is damaged"],
        ),
        (
            "no folder at all",
            Box::new(|| fs::remove_dir_all(&copy).expect("removed")),
            ["model.json", "cdl export"],
        ),
    ];
    for (what, damage, words) in &cases {
        fresh();
        assert!(predict().status.success(), "the copy works");
        damage();
        let output = predict();
        let message = said(&output);
        assert_eq!(output.status.code(), Some(2), "{what}: {message}");
        for word in words {
            assert!(message.contains(word), "{what}: {word} in {message}");
        }
        assert!(output.stdout.is_empty(), "{what}");
    }
}

/// Digests and names of a list.
fn sums(folder: &Path) -> Vec<(String, String)> {
    let text = fs::read_to_string(folder.join("SHA256SUMS")).expect("sums");
    let pair = |line: &str| line.split_once("  ").map(|(sum, name)| (sum.to_string(), name.to_string()));
    text.lines().filter_map(pair).collect()
}

#[test]
fn inference_is_measured_for_each_folder() {
    let (_folder, model, _) = exported();
    let args = ["bench", "--inference", text(&model), text(&model), "--batch", "4", "--steps", "2", "--json"];
    for line in lines(&done(&args)) {
        for number in ["latency_s", "images_s", "frozen_bytes", "trained_bytes"] {
            assert!(line[number].as_f64().is_some_and(|value| value > 0.0), "{number} in {line}");
        }
        assert_eq!((&line["role"], &line["batch"]), (&"student".into(), &4.into()));
    }
    let table = done(&["bench", "--inference", text(&model), "--batch", "4", "--steps", "1"]);
    assert!(String::from_utf8_lossy(&table.stdout).contains("images/s, of 4"));
}
