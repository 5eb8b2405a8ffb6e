//! Exported networks through the program: they predict what the run's networks do, to the bit, when nothing of the run is
//! left.

use std::{fs, path::Path};

use crate::common::exports::{lines, run, text};
use crate::common::{cdl, done, said};
use cdl_core::{
    candle_core::Tensor,
    config::Config,
    image::RgbImage,
    run::{Experiment, directory::read_model},
    traits::Role,
};
use serde_json::Value;
use sha2::{Digest, Sha256};

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
    // With whether the teacher asks another network for its query.
    let pairs: [(&str, bool, Vec<&str>); 8] = [
        ("coda_prompt", true, vec!["configs/distiller/kd_prompts.toml"]),
        ("l2p", false, vec!["configs/distiller/kd.toml", "--set", "query=own"]),
        ("l2p_deep", false, vec!["configs/distiller/none.toml", "configs/mode/corrected.toml"]),
        ("dual_prompt", true, vec!["configs/distiller/fitnets.toml", "--set", "student.depth=3"]),
        ("apt", false, vec!["--set", &two]),
        (
            "linear",
            true,
            vec!["configs/distiller/review_kd.toml", "--set", "teacher.learner.name=coda_prompt"],
        ),
        ("linear", false, vec!["configs/distiller/kd.toml"]),
        // Classes that it has not learned yet have logits too, and are no answers.
        (
            "apt",
            false,
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
    for (name, asks, more) in pairs {
        let folder = tempfile::tempdir().expect("temporary folder");
        let learner = learner(name);
        let run = run(&folder, &[&[learner.as_str()][..], &more].concat());
        let expected = answers(&run, 2);
        let images = folder.path().join("images");
        save(&expected.images, &images);
        let [student, teacher] = ["student", "teacher"].map(|role| folder.path().join(role));
        done(&["export", text(&run), "--student", text(&student), "--teacher", text(&teacher)]);
        assert!(!student.join("query").exists());
        assert_eq!(
            teacher.join("query").exists(),
            asks,
            "{name}: what the teacher does not ask is not there"
        );
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
    assert!(said(&refused).contains("thesis.tex: is not part of an exported model"), "{}", said(&refused));
    fs::remove_file(&thesis).expect("still there");
    // Another setting is another network.
    let refused = cdl(&[&again[..], &["--overwrite", "--set", "optimizer.lr=0.5"]].concat());
    assert_eq!(refused.status.code(), Some(2));
    assert!(said(&refused).contains("optimizer.lr"), "{}", said(&refused));
    let model: Value =
        serde_json::from_slice(&fs::read(student.join("model.json")).expect("file")).expect("JSON");
    assert_eq!(model["tasks"].as_array().map(Vec::len), Some(2));
    let thesis = folder.path().join("thesis.tex");
    fs::write(&thesis, "years").expect("written");
    for (args, word) in [
        (vec!["export", text(&run), "--student", text(&run), "--overwrite"], "not overwritten"),
        // It would not help, and is not advised.
        (vec!["export", text(&run), "--student", text(&run)], "not overwritten; choose another folder\n"),
        (vec!["export", text(&run), "--student", text(&thesis)], "expected a folder"),
        (vec!["export", text(&run), "--student", text(&thesis.join("deeper"))], "expected a folder"),
        (vec!["export", text(&run), "--student", "x", "--teacher", "./x"], "expected a folder apart"),
        (vec!["export", text(&run), "--student", "x", "--teacher", "x/y"], "expected a folder apart"),
        (vec!["export", text(&run)], "--student"),
        (vec!["export", text(&run), "--student", "x", "--task", "3"], "expected 1 to 2"),
        (vec!["export", text(&student), "--student", "x"], "is it a run?"),
    ] {
        let output = cdl(&args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(said(&output).contains(word), "{args:?}: {}", said(&output));
    }
    let left: Vec<_> = fs::read_dir(folder.path().join("models")).expect("folder").collect();
    assert_eq!(left.len(), 2, "nothing unfinished is left: {left:?}");
}

/// Looked at before the run is.
#[cfg(unix)]
#[test]
fn the_networks_have_folders_apart_however_they_are_written() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    fs::create_dir(at("x")).expect("folder");
    std::os::unix::fs::symlink(folder.path(), at("link")).expect("link");
    let refused = |student: &str, teacher: &str| {
        let output = cdl(&["export", &at("run"), "--student", &at(student), "--teacher", &at(teacher)]);
        assert_eq!(output.status.code(), Some(2), "{student}, {teacher}: {}", said(&output));
        said(&output).contains("expected a folder apart from that of --student")
    };
    for (student, teacher) in [
        ("x", "y/../x"),
        ("new", "y/../new"),
        ("x", "link/x"),
        ("link/new", "new"),
        ("y/../link/new/deeper", "new"),
        ("new", "link/x/../new"),
    ] {
        assert!(refused(student, teacher), "{student}, {teacher}");
    }
    for (student, teacher) in [("x", "link/new"), ("x", "x/../y"), ("y/../x", "y")] {
        assert!(!refused(student, teacher), "{student}, {teacher}");
    }
}
