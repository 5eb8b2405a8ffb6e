//! Exported networks: their logits equal those of the run's networks bit for bit, also after the run was deleted.

use std::{fs, path::Path};

use crate::common::exports::{lines, run, text};
use crate::common::{cdl, stderr, succeed};
use cdl_core::{
    candle_core::Tensor,
    config::Config,
    image::RgbImage,
    run::{Experiment, directory::read_model},
    traits::Role,
};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Batch sizes. The last digits of a matrix product depend on its number of rows, so logits are compared for equal
/// batches.
const BATCHES: [usize; 3] = [10, 1, 64];

/// Logits of a run's networks for all test images up to a task, in batches of each size.
struct Expected {
    images: Vec<RgbImage>,
    classes: Vec<String>,
    seen: usize,
    logits: Vec<(Role, usize, Vec<Vec<f32>>)>,
}

/// Computes the logits with the run's networks after task `after` (from 1).
fn expected(run: &Path, after: usize) -> Expected {
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
    Expected { images, classes: experiment.stream.classes().to_vec(), seen: task.seen(), logits }
}

/// Image of 28 px with these pixels, given plane by plane.
fn picture(values: &[f32]) -> RgbImage {
    assert_eq!(values.len(), 3 * 28 * 28);
    RgbImage::from_fn(28, 28, |x, y| {
        let value = |plane: u32| (values[(plane * 784 + y * 28 + x) as usize] * 255.0).round() as u8;
        [value(0), value(1), value(2)].into()
    })
}

/// Writes images to numbered files.
fn save(images: &[RgbImage], folder: &Path) {
    fs::create_dir_all(folder).expect("folder");
    for (number, image) in images.iter().enumerate() {
        image.save(folder.join(format!("{number:04}.png"))).expect("image");
    }
}

/// Asserts that the exported network `model` predicts `expected` bit for bit.
fn compare(model: &Path, images: &Path, role: Role, expected: &Expected, batch: usize) {
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
    let lines = lines(&succeed(&args));
    assert_eq!(lines.len(), expected.images.len());
    let logits =
        &expected.logits.iter().find(|(of, size, _)| (*of, *size) == (role, batch)).expect("logits").2;
    for (number, (line, logits)) in lines.iter().zip(logits).enumerate() {
        assert!(line["image"].as_str().expect("path").ends_with(&format!("{number:04}.png")));
        let predictions = line["predictions"].as_array().expect("predictions");
        assert_eq!(predictions.len(), expected.seen, "only learned classes are predicted");
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
        assert!(order.is_sorted_by(|a, b| a >= b), "sorted by logit: {order:?}");
    }
}

/// Names of the tensors in a file.
fn tensors(file: &Path) -> Vec<String> {
    let bytes = fs::read(file).expect("file");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    tensors.names().into_iter().map(String::from).collect()
}

#[test]
fn exports_of_every_learner_and_distiller_predict_as_the_run() {
    let learner = |name: &str| format!("configs/learner/{name}.toml");
    let distillers = |list: &str| format!("distillers=[{list}]");
    let two = distillers(r#"{ name = "review_kd" }, { name = "kd_prompts", alpha = 0.3 }, { name = "dkd" }"#);
    // The flag is true if the student computes the teacher's query.
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
        // Classes that have not been learned yet have logits but are never predicted.
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
    for (name, has_query, more) in pairs {
        let folder = tempfile::tempdir().expect("temporary folder");
        let learner = learner(name);
        let run = run(&folder, &[&[learner.as_str()][..], &more].concat());
        let expected = expected(&run, 2);
        let images = folder.path().join("images");
        save(&expected.images, &images);
        let [student, teacher] = ["student", "teacher"].map(|role| folder.path().join(role));
        succeed(&["export", text(&run), "--student", text(&student), "--teacher", text(&teacher)]);
        assert!(!student.join("query").exists());
        assert_eq!(
            teacher.join("query").exists(),
            has_query,
            "{name}: the query network is exported only if it is needed"
        );
        fs::remove_dir_all(&run).expect("removed");
        for batch in BATCHES {
            compare(&student, &images, Role::Student, &expected, batch);
        }
        compare(&teacher, &images, Role::Teacher, &expected, 10);
    }
}

#[test]
fn exported_folders_contain_only_what_inference_needs() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let list = r#"distillers=[{ name = "review_kd" }, { name = "kd_prompts" }, { name = "fitnets" }]"#;
    let run = run(&folder, &["--set", list, "--set", "student.depth=3", "--set", "query=student"]);
    let [student, teacher] = ["student", "teacher"].map(|role| folder.path().join("models").join(role));
    let output = succeed(&[
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
    // Checksums are those of sha256sum, and every file is listed.
    let sums = fs::read_to_string(student.join("SHA256SUMS")).expect("sums");
    for line in sums.lines() {
        let (sum, name) = line.split_once("  ").expect("line");
        let found = Sha256::digest(fs::read(student.join(name)).expect("file"));
        assert_eq!(found.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), sum, "{name}");
    }
    assert_eq!(sums.lines().count(), 5);
    // The model after the first task predicts only the classes of that task.
    let expected = expected(&run, 1);
    save(&expected.images, &folder.path().join("images"));
    compare(&student, &folder.path().join("images"), Role::Student, &expected, 10);

    // Existing files are kept, unless they are an exported network and --overwrite is given.
    let again = ["export", text(&run), "--student", text(&student)];
    let refused = cdl(&again);
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("--overwrite"), "{}", stderr(&refused));
    succeed(&[&again[..], &["--overwrite"]].concat());
    // Other files in the folder are never removed.
    let thesis = student.join("network/thesis.tex");
    fs::write(&thesis, "years").expect("written");
    let refused = cdl(&[&again[..], &["--overwrite"]].concat());
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        stderr(&refused).contains("thesis.tex: is not part of an exported model"),
        "{}",
        stderr(&refused)
    );
    fs::remove_file(&thesis).expect("not removed by the export");
    // Settings that change results are refused.
    let refused = cdl(&[&again[..], &["--overwrite", "--set", "optimizer.lr=0.5"]].concat());
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("optimizer.lr"), "{}", stderr(&refused));
    let model: Value =
        serde_json::from_slice(&fs::read(student.join("model.json")).expect("file")).expect("JSON");
    assert_eq!(model["tasks"].as_array().map(Vec::len), Some(2));
    let thesis = folder.path().join("thesis.tex");
    fs::write(&thesis, "years").expect("written");
    for (args, word) in [
        (vec!["export", text(&run), "--student", text(&run), "--overwrite"], "not overwritten"),
        // --overwrite would not help, so the message does not suggest it.
        (vec!["export", text(&run), "--student", text(&run)], "is not overwritten; choose another folder\n"),
        (vec!["export", text(&run), "--student", text(&thesis)], "expected a folder"),
        (vec!["export", text(&run), "--student", text(&thesis.join("deeper"))], "expected a folder"),
        (vec!["export", text(&run), "--student", "x", "--teacher", "./x"], "expected a folder separate"),
        (vec!["export", text(&run), "--student", "x", "--teacher", "x/y"], "expected a folder separate"),
        (vec!["export", text(&run)], "--student"),
        (vec!["export", text(&run), "--student", "x", "--task", "3"], "expected 1 to 2"),
        (vec!["export", text(&student), "--student", "x"], "expected a run directory"),
    ] {
        let output = cdl(&args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(stderr(&output).contains(word), "{args:?}: {}", stderr(&output));
    }
    let left: Vec<_> = fs::read_dir(folder.path().join("models")).expect("folder").collect();
    assert_eq!(left.len(), 2, "temporary folders are removed: {left:?}");
}

#[cfg(unix)]
#[test]
fn overlapping_folders_are_refused_before_the_run_is_read() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    fs::create_dir(at("x")).expect("folder");
    std::os::unix::fs::symlink(folder.path(), at("link")).expect("link");
    let refused = |student: &str, teacher: &str| {
        let output = cdl(&["export", &at("run"), "--student", &at(student), "--teacher", &at(teacher)]);
        assert_eq!(output.status.code(), Some(2), "{student}, {teacher}: {}", stderr(&output));
        stderr(&output).contains("expected a folder separate from that of --student")
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
