//! Combinations of methods and settings.

use std::{fs, path::Path};

use crate::common::{TINY, cdl, repository, stderr};
use serde_json::Value;

/// Runs the tiny quickstart with `more` arguments. Returns standard error, the record and the results.
fn run(more: &[&str]) -> (String, Value, Value) {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().join("run");
    let args =
        [&["run", "configs/quickstart.toml"][..], &TINY, more, &["--run-dir", dir.to_str().expect("path")]];
    let output = cdl(&args.concat());
    let stderr = stderr(&output);
    assert!(output.status.success(), "{more:?}: {stderr}");
    assert!(!stderr.contains("no gradient reached"), "{more:?}: {stderr}");
    let json = |name: &str| -> Value {
        serde_json::from_slice(&fs::read(dir.join(name)).expect("file")).expect("JSON")
    };
    (stderr, json("run.json"), json("results.json"))
}

/// Names of the configuration files of one kind.
fn fragments(kind: &str) -> Vec<String> {
    let files = fs::read_dir(repository().join("configs").join(kind)).expect("folder of fragments");
    let mut names: Vec<String> = files
        .map(|file| file.expect("file").path().file_stem().expect("name").display().to_string())
        .collect();
    names.sort();
    names
}

fn fragment(kind: &str, name: &str) -> String {
    format!("configs/{kind}/{name}.toml")
}

/// Arguments that select each method of a kind: by its configuration files, or by name if it has none.
fn methods(kind: &str) -> Vec<Vec<String>> {
    let fragments = fragments(kind);
    let list = String::from_utf8_lossy(&cdl(&["list"]).stdout).into_owned();
    let section = list.lines().skip_while(|line| *line != format!("{kind}s")).skip(1);
    let registered =
        section.take_while(|line| line.starts_with(' ')).filter_map(|line| line.split_whitespace().next());
    let others: Vec<&str> =
        registered.filter(|name| !fragments.iter().any(|fragment| fragment == name)).collect();
    let by_file = fragments.iter().map(|name| vec![fragment(kind, name)]);
    let by_name = others.iter().map(|name| vec!["--set".into(), format!("{kind}.name={name}")]);
    by_file.chain(by_name).collect()
}

#[test]
fn every_learner_runs_with_every_distiller() {
    let (learners, distillers) = (methods("learner"), methods("distiller"));
    assert!(learners.len() >= 6 && distillers.len() >= 6, "{learners:?}, {distillers:?}");
    for learner in &learners {
        for distiller in &distillers {
            let args = learner.iter().chain(distiller).map(String::as_str);
            let args: Vec<&str> =
                args.chain(["--set", "batch_size=5", "--set", "stream.train_per_class=2"]).collect();
            let (stderr, _, results) = run(&args);
            assert!(stderr.contains("task 2/2 student epoch 1/1"), "{args:?}: {stderr}");
            for role in ["teacher", "student"] {
                let accuracy = results[role]["average_accuracy"].as_f64().expect("accuracy");
                assert!((0.0..=100.0).contains(&accuracy), "{args:?}");
            }
        }
    }
}

#[test]
fn results_of_every_method_do_not_depend_on_the_number_of_threads() {
    for (learner, distillers) in [
        ("l2p_deep", "[{ name = \"review_kd\" }, { name = \"dkd\" }]"),
        ("dual_prompt", "[{ name = \"fitnets\" }, { name = \"kd_prompts\" }]"),
        ("apt", "[{ name = \"kd_prompts\" }]"),
    ] {
        let folder = tempfile::tempdir().expect("temporary folder");
        let models = ["1", "2"].map(|threads| {
            let dir = folder.path().join(threads);
            let (learner, distillers) = (fragment("learner", learner), format!("distillers={distillers}"));
            let args =
                ["run", "configs/quickstart.toml", &learner, "--set", &distillers, "--threads", threads];
            let output = cdl(&[&args[..], &TINY, &["--run-dir", dir.to_str().expect("path")]].concat());
            assert!(output.status.success(), "{}", stderr(&output));
            ["teacher", "student"]
                .map(|role| fs::read(dir.join(format!("models/task_2/{role}.safetensors"))).expect("model"))
        });
        assert!(models[0] == models[1], "{learner} with {distillers}");
    }
}

#[test]
fn the_recorded_configuration_repeats_the_run() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let [first, again] =
        ["first", "again"].map(|name| folder.path().join(name).to_str().expect("path").to_string());
    let distillers =
        "distillers=[{ name = \"kd_prompts\", alpha = 0.3 }, { name = \"review_kd\", weight = 0.5 }]";
    let more = ["--set", distillers, "--set", "teacher.learner.name=apt", "--set", "mode=corrected"];
    let output = cdl(&[&["run", "configs/quickstart.toml", "--run-dir", &first][..], &TINY, &more].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let written = format!("{first}/config.toml");
    let output = cdl(&["run", &written, "--run-dir", &again]);
    assert!(output.status.success(), "{}", stderr(&output));
    let model = |run: &str| fs::read(format!("{run}/models/task_2/student.safetensors")).expect("model");
    assert!(model(&first) == model(&again));
    let output = cdl(&["eval", &first]);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(printed.matches("as recorded by the run").count(), 2, "{printed}{}", stderr(&output));
}

#[test]
fn distillers_stack_and_every_term_is_logged_by_name() {
    let (stderr, record, _) = run(&[
        "--set",
        "distillers=[{ name = \"dkd\" }, { name = \"review_kd\", weight = 0.5 }, { name = \"kd_prompts\" }]",
    ]);
    for term in ["dkd/dkd", "review_kd/kd", "review_kd/review", "kd_prompts/kd", "ce"] {
        assert!(stderr.contains(term), "{term} in {stderr}");
    }
    let trained = record["trained"].to_string();
    assert!(trained.contains("ReviewKD_layers.abfs.0") && trained.contains("kd_prompt.kd_p_0"));
    // The weight scales the terms of its method only.
    let terms = |weight: &str| -> Vec<(String, f64)> {
        let folder = tempfile::tempdir().expect("temporary folder");
        let dir = folder.path().join("run");
        let list = format!("distillers=[{{ name = \"dkd\" }}, {{ name = \"fitnets\", weight = {weight} }}]");
        let args =
            ["run", "configs/quickstart.toml", "--set", &list, "--run-dir", dir.to_str().expect("path")];
        // A single step: the losses do not depend on the weight through training yet.
        let output = cdl(&[&args[..], &TINY, &["--set", "batch_size=20"]].concat());
        assert!(output.status.success(), "{}", self::stderr(&output));
        let text = fs::read_to_string(dir.join("metrics.jsonl")).expect("metrics");
        let student = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        let student = student.into_iter().find(|line| line["role"] == "student").expect("student's line");
        let losses = student["losses"].as_object().expect("losses").clone();
        losses.into_iter().map(|(name, value)| (name, value.as_f64().expect("number"))).collect()
    };
    let (one, half) = (terms("1.0"), terms("0.5"));
    for ((name, one), (_, half)) in one.iter().zip(&half).filter(|((name, _), _)| name != "loss") {
        let expected = if name.starts_with("fitnets/") { one / 2.0 } else { *one };
        assert!((half - expected).abs() <= 1e-6 * expected.abs(), "{name}: {one} and {half}");
    }
}

#[test]
fn teacher_and_student_may_run_different_learners() {
    let (stderr, record, _) = run(&["--set", "teacher.learner={ name = \"l2p\", pool = 6, length = 4 }"]);
    assert!(
        stderr.contains("teacher: embedded:micro_teacher (6 blocks, width 128, 4 heads), learner l2p"),
        "{stderr}"
    );
    assert!(stderr.contains("learner coda_prompt"), "{stderr}");
    let shape = |role: &str, name: &str| {
        let trained = record["trained"].as_array().expect("list").clone();
        let one = trained.into_iter().find(|t| t["role"] == role && t["name"] == name);
        one.map(|one| one["shape"].to_string())
    };
    assert_eq!(shape("teacher", "prompt.e_p_0").as_deref(), Some("[6,4,128]"));
    assert!(shape("teacher", "prompt.e_a_0").is_none() && shape("student", "prompt.e_a_0").is_some());
    // Without a name, other settings are those of [learner].
    let (_, record, _) = run(&["--set", "student.learner.pool=4"]);
    let pools: Vec<_> =
        record["trained"].as_array().expect("list").iter().filter(|t| t["name"] == "prompt.e_p_0").collect();
    assert_eq!((pools[0]["shape"][0].as_u64(), pools[1]["shape"][0].as_u64()), (Some(20), Some(4)));
    assert_eq!(pools[1]["shape"][1].as_u64(), Some(8));
}

#[test]
fn every_baseline_is_one_configuration_file() {
    let baseline = |name: &str| fragment("baseline", name);
    let (stderr, record, results) = run(&[&baseline("student_alone")]);
    assert!(
        results["teacher"].is_null() && !results["student"].is_null() && !stderr.contains("teacher epoch")
    );
    assert!(!record["trained"].to_string().contains("teacher"));
    let (stderr, _, results) = run(&[&baseline("teacher_alone")]);
    assert!(
        results["student"].is_null() && !results["teacher"].is_null() && !stderr.contains("student epoch")
    );
    let (stderr, _, results) = run(&[&baseline("joint")]);
    assert!(stderr.contains("10 classes in 1 task,"), "{stderr}");
    assert_eq!(results["tasks"], 1);
    let (_, record, _) = run(&[&baseline("linear")]);
    assert_eq!(
        record["trained"].as_array().map(Vec::len),
        Some(2),
        "only weight and bias of the head are trained"
    );
    // 40 images, and the 20 of the memory again in the second task.
    let (stderr, _, _) = run(&[&baseline("rehearsal"), "--set", "stream.memory=20"]);
    assert!(stderr.contains("60 training and 20 test images"), "{stderr}");
    assert_eq!(fragments("baseline"), ["joint", "linear", "rehearsal", "student_alone", "teacher_alone"]);
}

#[test]
fn every_quirk_is_recorded_and_can_be_switched() {
    let quirks = |more: &[&str]| run(more).1["quirks"].clone();
    let dual = fragment("learner", "dual_prompt");
    // The modes override the quickstart's normalisation and class order.
    let of =
        |mode: &'static str| [mode, dual.as_str(), "--set", "teacher.learner.name=apt", "--set", "epochs=2"];
    let (published, corrected) = (of("configs/mode/published.toml"), of("configs/mode/corrected.toml"));
    let names = [
        "fixed_class_order",
        "repeated_first_rate",
        "student/dual_prompt/untrained_candidates",
        "student/unnormalised_pixels",
        "teacher/apt/stale_teacher_prompts",
        "teacher/students_query",
        "teacher/unnormalised_pixels",
    ];
    for (mode, on) in [(&published, true), (&corrected, false)] {
        let quirks = quirks(mode);
        let found: Vec<_> = quirks.as_object().expect("quirks").keys().cloned().collect();
        assert_eq!(found, names);
        for name in names {
            assert_eq!(quirks[name], on, "{name} in {mode:?}");
        }
    }
    for (set, quirk) in [
        ("teacher.learner.teacher_prompts=merged", "teacher/apt/stale_teacher_prompts"),
        ("learner.candidates=seen", "student/dual_prompt/untrained_candidates"),
        ("stream.class_order=shuffled", "fixed_class_order"),
        ("schedule.repeat_first_rate=false", "repeated_first_rate"),
        ("schedule.name=constant", "repeated_first_rate"),
        ("query=own", "teacher/students_query"),
        ("student.normalize=half", "student/unnormalised_pixels"),
    ] {
        let quirks = quirks(&[&published[..], &["--set", set]].concat());
        for name in names {
            assert_eq!(quirks[name], name != quirk, "{name} with {set}");
        }
    }
    let alone = quirks(&[&published[..], &["configs/baseline/student_alone.toml"]].concat());
    assert!(!alone.to_string().contains("teacher/"), "a teacher that is not trained has no quirks: {alone}");
}

#[test]
fn every_optimiser_and_schedule_runs() {
    for optimizer in ["adam", "amsgrad", "sgd", "rmsprop"] {
        run(&["--set", &format!("optimizer.name={optimizer}"), "--set", "optimizer.weight_decay=1e-4"]);
    }
    let (stderr, _, _) = run(&[
        "--set",
        "epochs=3",
        "--set",
        "schedule={ name = \"step\", milestones = [1, 2], gamma = 0.1 }",
    ]);
    for lr in ["lr 5.00e-3", "lr 5.00e-4", "lr 5.00e-5"] {
        assert!(stderr.contains(lr), "{lr} in {stderr}");
    }
    run(&["--set", "schedule.name=constant"]);
}

#[test]
fn every_configuration_of_the_repository_is_valid() {
    let root = repository();
    let mut presets = 0;
    for file in fs::read_dir(root.join("configs/preset")).expect("presets") {
        let file = file.expect("file").path();
        let file = file
            .strip_prefix(&root)
            .expect("path below the repository")
            .to_str()
            .expect("UTF-8 path")
            .to_string();
        for learner in fragments("learner") {
            let output = cdl(&["explain", &file, &fragment("learner", &learner)]);
            assert!(output.status.success(), "{file}: {}", stderr(&output));
        }
        presets += 1;
    }
    assert!(presets >= 5);
    for kind in ["backbone", "stream", "baseline", "mode", "learner", "distiller"] {
        for name in fragments(kind) {
            let output = cdl(&["explain", "configs/quickstart.toml", &fragment(kind, &name)]);
            assert!(output.status.success(), "{kind}/{name}: {}", stderr(&output));
        }
    }
    assert!(Path::new(&root).join("configs/mode/published.toml").exists());
}
