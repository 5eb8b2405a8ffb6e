//! Complete runs.

use std::{fs, path::Path};

use crate::common::{SMALL, TINY, cdl, repository, stderr};
use serde_json::Value;

fn run(dir: &Path, more: &[&str]) -> std::process::Output {
    let dir = dir.to_str().expect("UTF-8 path");
    cdl(&[&["run", "configs/quickstart.toml", "--run-dir", dir][..], &SMALL, more].concat())
}

fn json(file: &Path) -> Value {
    serde_json::from_slice(&fs::read(file).expect("file")).expect("JSON")
}

/// Models and matrices of a run, and its results without time and memory.
fn outcome(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = vec!["accuracy_student.csv".to_string(), "accuracy_teacher.csv".to_string()];
    for task in 1..=5 {
        files.extend(["student", "teacher"].map(|role| format!("models/task_{task}/{role}.safetensors")));
    }
    let mut all: Vec<_> =
        files.into_iter().map(|file| (file.clone(), fs::read(dir.join(&file)).expect("file"))).collect();
    let mut results = json(&dir.join("results.json"));
    for measured in ["wall_seconds", "peak_memory_bytes"] {
        results.as_object_mut().expect("object").remove(measured);
    }
    all.push(("results.json".into(), results.to_string().into_bytes()));
    all
}

fn assert_equal(a: &Path, b: &Path) {
    for ((name, a), (_, b)) in outcome(a).iter().zip(&outcome(b)) {
        assert!(a == b, "{name} differs");
    }
}

#[test]
fn accuracy_over_images_counts_images_and_not_tasks() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().join("run");
    let classes =
        fs::read_to_string(repository().join("plugins/assets/fashion_mnist/classes.txt")).expect("names");
    let classes: Vec<&str> = classes.lines().collect();
    // Tasks of one, six and three classes.
    let tasks = format!("stream.task_classes={:?}", [&classes[..1], &classes[1..7], &classes[7..]]);
    let output = run(&dir, &["--set", &tasks]);
    assert!(output.status.success(), "{}", stderr(&output));
    let mut results = json(&dir.join("results.json"));
    assert_eq!(results["test_images"], serde_json::json!([5, 30, 15]));
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    for role in ["student", "teacher"] {
        let confusion =
            fs::read_to_string(dir.join(format!("confusion_{role}.csv"))).expect("confusion matrix");
        let rows = confusion.lines().skip(1).map(|line| line.rsplit(',').take(10).collect::<Vec<_>>());
        let right =
            rows.enumerate().map(|(class, row)| row[9 - class].parse::<f64>().expect("count")).sum::<f64>();
        let shown = results[role]["accuracy_over_images"].as_f64().expect("number");
        assert!((shown - 100.0 * right / 50.0).abs() < 1e-9, "{role}: {shown}, {right} of 50");
        let matrix: Vec<Vec<f64>> =
            serde_json::from_value(results[role]["accuracy_matrix"].clone()).expect("matrix");
        let images = [5.0, 30.0, 15.0];
        let over_images = |row: &Vec<f64>| {
            let right: f64 = row.iter().zip(images).map(|(accuracy, images)| accuracy * images).sum();
            right / images[..row.len()].iter().sum::<f64>()
        };
        let mean = matrix.iter().map(over_images).sum::<f64>() / 3.0;
        let incremental = results[role]["incremental_accuracy_over_images"].as_f64().expect("number");
        assert!((incremental - mean).abs() < 1e-9, "{role}: {incremental}, {mean}");
        let words =
            format!("accuracy over images {shown:.2} %, incremental accuracy over images {incremental:.2} %");
        assert!(printed.contains(&words), "{words} in {printed}");
        let evaluated = cdl(&["eval", dir.to_str().expect("UTF-8")]);
        let evaluated = String::from_utf8_lossy(&evaluated.stdout).into_owned();
        assert!(evaluated.contains(&format!("over images {shown:.2} %")), "{evaluated}");
    }
    // Results of older versions have no counts.
    results.as_object_mut().expect("object").remove("test_images");
    for role in ["student", "teacher"] {
        let of = results[role].as_object_mut().expect("object");
        of.retain(|key, _| !key.ends_with("accuracy_over_images"));
    }
    fs::write(dir.join("results.json"), results.to_string()).expect("written");
    let (page, tables) = (folder.path().join("page.html"), folder.path().join("tables"));
    let files = ["--out", page.to_str().expect("UTF-8"), "--tables", tables.to_str().expect("UTF-8")];
    let report = cdl(&[&["report", dir.to_str().expect("UTF-8")][..], &files].concat());
    assert!(report.status.success(), "{}", stderr(&report));
    let summary = fs::read_to_string(tables.join("summary.csv")).expect("table");
    assert!(summary.lines().skip(1).all(|line| line.ends_with(",,,")), "{summary}");
}

#[test]
fn a_run_records_everything_and_can_be_repeated_evaluated_and_replaced() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let first = folder.path().join("first");
    let output = run(&first, &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    for part in ["student: accuracy", "teacher: accuracy", "average accuracy", "forgetting", "results are in"]
    {
        assert!(printed.contains(part), "{part} is missing in {printed}");
    }
    let stderr = stderr(&output);
    assert!(stderr.contains("task 5/5 student epoch 1/1") && stderr.contains("images/s"), "{stderr}");
    assert!(!stderr.contains('\r'), "no progress bar where there is no terminal");

    // The published metrics, computed again from the matrix.
    let results = json(&first.join("results.json"));
    for role in ["student", "teacher"] {
        let of = &results[role];
        let matrix: Vec<Vec<f64>> = serde_json::from_value(of["accuracy_matrix"].clone()).expect("matrix");
        assert_eq!(matrix.iter().map(Vec::len).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        let average = matrix[4].iter().sum::<f64>() / 5.0;
        let forgetting = (0..5).map(|j| matrix[j][j] - matrix[4][j]).sum::<f64>() / 5.0;
        assert!((of["average_accuracy"].as_f64().expect("number") - average).abs() < 1e-9);
        assert!((of["forgetting"].as_f64().expect("number") - forgetting).abs() < 1e-9);
    }
    assert!(results["wall_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0));
    #[cfg(target_os = "linux")]
    assert!(results["peak_memory_bytes"].as_u64().is_some_and(|bytes| bytes > 1_000_000));
    let record = json(&first.join("run.json"));
    for role in ["student", "teacher"] {
        assert_eq!(record[role]["provenance"]["sha256"].as_str().map(str::len), Some(64));
    }
    let files = record["data"].as_array().expect("data");
    assert_eq!(files.len(), 4, "images and labels of both splits");
    assert_eq!(files[0]["file"], "embedded:train-images-idx3-ubyte.gz");
    assert!(files.iter().all(|file| file["sha256"].as_str().is_some_and(|sha| sha.len() == 64)));
    assert_eq!(fs::read_to_string(first.join("metrics.jsonl")).expect("metrics").lines().count(), 10);
    assert!(fs::read_to_string(first.join("log.txt")).expect("log").contains("task 1/5"));

    // The recorded configuration repeats the run byte for byte.
    let (config, again) = (first.join("config.toml"), folder.path().join("again"));
    let repeated =
        cdl(&["run", config.to_str().expect("path"), "--run-dir", again.to_str().expect("path"), "-q"]);
    assert!(repeated.status.success(), "{}", self::stderr(&repeated));
    assert!(repeated.stderr.is_empty(), "-q prints nothing but warnings: {}", self::stderr(&repeated));
    assert_equal(&first, &again);

    let evaluated = cdl(&["eval", first.to_str().expect("path")]);
    let printed = String::from_utf8_lossy(&evaluated.stdout).into_owned();
    assert_eq!(printed.matches("as recorded by the run").count(), 2, "{printed}");
    let evaluated = cdl(&["eval", first.to_str().expect("path"), "--task", "2"]);
    let printed = String::from_utf8_lossy(&evaluated.stdout).into_owned();
    assert_eq!(printed.matches("as recorded by the run").count(), 2, "{printed}");

    let other = cdl(&["eval", first.to_str().expect("path"), "--set", "stream.tasks=2"]);
    assert_eq!(other.status.code(), Some(2));
    assert!(
        self::stderr(&other).contains("images and tasks are not those of the run"),
        "{}",
        self::stderr(&other)
    );

    let refused = run(&first, &[]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(self::stderr(&refused).contains("--overwrite"), "{}", self::stderr(&refused));
    assert_equal(&first, &again);
    let notes = first.join("notes.md");
    fs::write(&notes, "thoughts").expect("written");
    for more in [&[][..], &["--overwrite"]] {
        let refused = run(&first, more);
        assert_eq!(refused.status.code(), Some(2));
        assert!(
            self::stderr(&refused).contains("contains `notes.md`, which does not belong to the run"),
            "{}",
            self::stderr(&refused)
        );
    }
    fs::remove_file(&notes).expect("removed");
    assert_equal(&first, &again);
    let replaced =
        run(&first, &["--overwrite", "--set", "distiller.name=none", "--set", "train_teacher=false"]);
    assert!(replaced.status.success(), "{}", self::stderr(&replaced));
    let results = json(&first.join("results.json"));
    assert!(results["teacher"].is_null() && !results["student"].is_null());
    assert!(
        !first.join("models/task_5/teacher.safetensors").exists(),
        "files of the earlier run are removed"
    );
}

#[test]
fn a_run_records_its_weights_from_transformers() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().join("run");
    let weights = repository().join("plugins/tests/fixtures/vit/transformers_vit");
    let set = format!("student.weights={}", weights.display());
    let output = run(&dir, &["--set", &set, "--set", "train_teacher=false", "--set", "distiller.name=none"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let student = &json(&dir.join("run.json"))["student"];
    assert_eq!(student["provenance"]["source"], weights.display().to_string());
    assert_eq!(student["provenance"]["file"], "model.safetensors");
    assert_eq!((&student["heads"], &student["width"]), (&4.into(), &16.into()));
    let mean: Vec<f32> = serde_json::from_value(student["normalization"]["mean"].clone()).expect("mean");
    assert_eq!(mean, [0.485, 0.456, 0.406]);
}

#[test]
fn results_depend_on_the_seed_but_not_on_the_number_of_threads() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let [one, two, other] = ["one", "two", "other"].map(|name| folder.path().join(name));
    for (dir, more) in [
        (&one, &["--threads", "1"][..]),
        (&two, &["--threads", "2"]),
        (&other, &["--threads", "2", "--set", "seed=2"]),
    ] {
        let output = run(dir, more);
        assert!(output.status.success(), "{}", stderr(&output));
    }
    assert_equal(&one, &two);
    assert!(outcome(&one) != outcome(&other), "results depend on the seed");
}

#[test]
fn list_describe_and_explain_show_names_settings_and_origins() {
    let text = |args: &[&str]| {
        let output = cdl(args);
        assert!(output.status.success(), "{}", stderr(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let list = text(&["list"]);
    for name in ["vit", "coda_prompt", "kd", "kd_prompts", "none", "embedded", "idx", "image_folder"] {
        assert!(list.contains(&format!("  {name} ")), "{name} in {list}");
    }
    let described = text(&["describe", "kd_prompts"]);
    for part in ["arXiv:2407.13911", "layers: integer = 12", "Number of blocks with distillation prompts"] {
        assert!(described.contains(part), "{part} in {described}");
    }
    assert!(text(&["describe", "none"]).contains("no settings"));
    for (section, part) in [
        ("run", "train_student: boolean = true"),
        ("optimizer", "\"adam\" | \"amsgrad\" | \"sgd\" | \"rmsprop\""),
        ("schedule", "milestones: list of integer"),
        ("checkpoint", "every_steps: integer = 0"),
    ] {
        let described = text(&["describe", section]);
        assert!(described.contains(part), "{part} in {described}");
    }
    let explained = text(&["explain", "configs/quickstart.toml", "--set", "learner.pool=30"]);
    let line = |key: &str| explained.lines().find(|l| l.starts_with(key)).expect(key).to_string();
    assert!(line("learner.pool").contains("30") && line("learner.pool").ends_with("# --set learner.pool=30"));
    assert!(line("distiller.layers").ends_with("configs/distiller/kd_prompts.toml"));
    assert!(line("optimizer.momentum").ends_with("# default"));
    let explained = text(&["explain", "configs/quickstart.toml", "--set", "teacher.learner.length=4"]);
    let line = |key: &str| explained.lines().find(|l| l.starts_with(key)).expect(key).to_string();
    assert!(line("teacher.learner.length").ends_with("# --set teacher.learner.length=4"));
    assert!(
        line("teacher.learner.pool").contains("20")
            && line("teacher.learner.pool").ends_with("quickstart.toml")
    );
}

#[test]
fn a_section_with_another_name_replaces_the_whole_section() {
    let output = cdl(&["explain", "configs/quickstart.toml", "--set", "distiller.name=kd"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(text.contains("distiller.name = \"kd\"") && !text.contains("distiller.layers"), "{text}");
}

#[test]
fn with_max_tasks_only_the_tasks_of_the_run_are_counted() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (dir, student) = (folder.path().join("run"), folder.path().join("student"));
    let (path, student) = (dir.to_str().expect("path"), student.to_str().expect("path"));
    let short = ["--set", "stream.tasks=5", "--set", "stream.max_tasks=2", "--set", "batch_size=8"];
    let args = [&["configs/quickstart.toml"][..], &TINY, &short].concat();
    let checked = cdl(&[&["check"][..], &args, &["--steps", "0"]].concat());
    let table = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(table.contains("4 classes in 2 tasks"), "{table}");
    let output = cdl(&[&["run"][..], &args, &["--run-dir", path]].concat());
    let messages = stderr(&output);
    assert!(output.status.success(), "{messages}");
    for words in ["4 classes in 2 tasks", "task 1/2 teacher", "task 2/2 student", "task 2/2 done"] {
        assert!(messages.contains(words), "{words} in {messages}");
    }
    assert!(!messages.contains("/5 "), "{messages}");
    let results = json(&dir.join("results.json"));
    assert_eq!((&results["tasks"], &results["tasks_done"]), (&2.into(), &2.into()));
    let metrics = fs::read_to_string(dir.join("metrics.jsonl")).expect("metrics");
    assert!(metrics.lines().all(|line| line.contains("\"tasks\":2,")), "{metrics}");
    let exported = cdl(&["export", path, "--student", student]);
    let exported = String::from_utf8_lossy(&exported.stdout).into_owned();
    assert!(exported.contains("student after task 2 of 2, 4 classes"), "{exported}");
    assert!(cdl(&["report", path]).status.success());
    let page = fs::read_to_string(dir.join("report.html")).expect("page");
    assert!(page.contains("2 of 2 tasks done,"));
}
