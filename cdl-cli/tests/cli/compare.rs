//! Comparison with the published table. Run directories of published length are written by the tests, not by runs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use crate::common::{TINY, cdl, repository, stderr};
use cdl_core::{config::Config, metrics::AccuracyMatrix};
use serde_json::{Value, json};

/// Rows of a published file by column.
fn asset(name: &str) -> Vec<BTreeMap<String, String>> {
    let file = repository().join("cdl-cli/assets/published").join(name);
    let mut reader = csv::Reader::from_path(file).expect("the data");
    reader.deserialize().collect::<Result<_, _>>().expect("rows")
}

/// Output of `cdl compare --paper --format json`.
fn compared(dir: &Path) -> Value {
    let output = cdl(&["compare", dir.to_str().expect("UTF-8 path"), "--paper", "--format", "json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Accuracy matrix of ten tasks: `first` percent right after a task, `last` percent later.
fn matrix(first: f64, last: f64) -> Value {
    let mut matrix = AccuracyMatrix::default();
    for task in 0..10 {
        let on = |past: usize| if past == task { first } else { last };
        matrix.push((0..=task).map(on).collect());
    }
    serde_json::to_value(matrix.summary(&[50; 10]).expect("summary")).expect("JSON")
}

/// Writes the directory of a run with the configuration `files` and `sets`.
fn write_run(dir: &Path, files: &[&str], sets: &[&str]) {
    cdl_plugins::link();
    let files: Vec<_> = files.iter().map(|file| repository().join(file)).collect();
    let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
    let config = Config::load(&files, &sets).expect("configuration");
    fs::create_dir_all(dir).expect("folder");
    fs::write(dir.join("config.toml"), config.to_toml().expect("TOML")).expect("written");
    let network = |size: &str, width: usize, norm: f64| {
        let (mean, deviation) = ([norm; 3], [1.0 - norm; 3]);
        json!({
            "width": width, "depth": 12,
            "normalization": { "mean": mean, "std": deviation },
            "provenance": { "source": size, "repository": format!("timm/vit_{size}_patch16_224.augreg_in21k_ft_in1k") },
        })
    };
    let tasks: Vec<Value> =
        (0..10).map(|task| json!({ "start": 10 * task, "end": 10 * task + 10 })).collect();
    let record = json!({
        "seed": 1,
        "quirks": { "fixed_class_order": true },
        "teacher": network("base", 768, 0.0),
        "student": network("small", 384, 0.5),
        "tasks": tasks,
    });
    fs::write(dir.join("run.json"), record.to_string()).expect("written");
    let results = json!({
        "student": matrix(90.0, 84.0), "teacher": matrix(91.0, 86.5),
        "tasks_done": 10, "tasks": 10, "wall_seconds": 1.0,
    });
    fs::write(dir.join("results.json"), results.to_string()).expect("written");
    for role in ["student", "teacher"] {
        fs::write(dir.join(format!("confusion_{role}.csv")), "true_class,a,b\na,4000,1000\nb,0,5000\n")
            .expect("written");
    }
}

#[test]
fn a_run_is_compared_with_its_rows_and_differences_are_listed() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().join("run");
    write_run(&dir, &["configs/preset/cifar100_base_small.toml"], &["epochs=5", "learner.pool=50"]);
    let all = compared(&dir);
    let student = &all[0];
    let of = |value: &Value| value.as_f64().expect("number");
    assert!((of(&student["average_accuracy"]["mean"]) - (9.0 * 84.0 + 90.0) / 10.0).abs() < 1e-9);
    // Results of CODA-Prompt with the paper's method, Base to Small, in every version.
    let found: Vec<(&str, f64)> = (student["published"].as_array().expect("rows").iter())
        .map(|row| (row["method"].as_str().expect("name"), of(&row["average_accuracy"])))
        .collect();
    let expected = [("DCDL(ours)", 84.31), ("KDP(ours)", 84.31), ("KD-Token", 83.72), ("CDL-Prompt", 83.24)];
    assert_eq!(found, expected);
    let first = &student["published"][0];
    assert!((of(&first["average_accuracy_difference"]) - (84.6 - 84.31)).abs() < 1e-9, "{first}");
    assert!((of(&first["forgetting_difference"]) - (5.4 - 5.63)).abs() < 1e-9, "{first}");
    let differences = |network: &Value| -> BTreeMap<String, (Value, Value)> {
        let rows = network["settings_that_differ"].as_array().expect("list").clone();
        let what = |row: &Value| row["what"].as_str().expect("text").to_string();
        rows.iter().map(|row| (what(row), (row["ours"].clone(), row["published"].clone()))).collect()
    };
    let found = differences(student);
    let names: Vec<&str> = found.keys().map(String::as_str).collect();
    let expected = [
        "components",
        "epochs",
        "method of the first version",
        "normalisation, deviation",
        "normalisation, mean",
        "seeds",
    ];
    assert_eq!(names, expected);
    assert_eq!(found["epochs"], (json!(5), json!(20)));
    assert_eq!(found["components"], (json!(50), json!(100)));
    assert_eq!(found["seeds"], (json!("1 (seed 1)"), Value::Null));
    assert_eq!(found["normalisation, mean"], (json!([0.5, 0.5, 0.5]), json!([0.0, 0.0, 0.0])));

    // The teacher counts as a single network; only the source of its query differs.
    let teacher = &all[1];
    assert_eq!(teacher["subject"]["teacher"], "-");
    assert_eq!(teacher["published"][0]["average_accuracy"], 86.16);
    assert_eq!(differences(teacher)["source of the query"], (json!("student"), json!("own")));

    let run = dir.to_str().expect("UTF-8 path");
    for (format, expected) in [
        ("table", &["84.31", "+0.29", "5.63", "-0.23", "not stated", "ViT-Base to ViT-Small"][..]),
        (
            "markdown",
            &["| D-CDL(site 2026), DCDL(ours) | 84.31 | +0.29 | 5.63 | -0.23 |", "| epochs | 5 | 20 |"],
        ),
        ("csv", &["DCDL(ours),84.31,5.63,", "epochs: 5, published 20"]),
    ] {
        let output = cdl(&["compare", run, "--paper", "--format", format]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        expected.iter().for_each(|part| assert!(text.contains(part), "{format}: {part} in {text}"));
    }
}

#[test]
fn without_a_matching_row_the_nearest_rows_are_listed() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().join("sweep");
    let path = dir.to_str().expect("UTF-8 path");
    let sweep = ["sweep", "configs/quickstart.toml", "--seeds", "1,2", "--out", path];
    let output = cdl(&[&sweep[..], &TINY].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let output = cdl(&["compare", path, "--paper"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for part in
        ["no published row matches", "data set embedded instead of cifar100", "tasks 2 instead of 10", " ± "]
    {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert_eq!(compared(&dir)[0]["average_accuracy"]["n"], 2);

    // Plugins of the recorded configurations are not loaded and may be missing.
    for name in ["seed-1", "seed-2"] {
        for file in [format!("configs/{name}.toml"), format!("cells/{name}/config.toml")] {
            let file = dir.join(file);
            let config = fs::read_to_string(&file).expect("configuration");
            let foreign = config.replace("name = \"kd_prompts\"", "name = \"theirs\"");
            assert_ne!(foreign, config);
            fs::write(
                &file,
                format!("plugins = [\"theirs.so\"]\n{}", foreign.replacen("plugins = []\n", "", 1)),
            )
            .expect("written");
        }
    }
    let theirs = compared(&dir);
    assert_eq!(theirs[0]["average_accuracy"]["n"], 2);
    assert_eq!(theirs[0]["subject"]["distiller"], "theirs");
    // Unreadable cells are skipped.
    fs::write(dir.join("cells/seed-2/run.json"), "{ damaged").expect("written");
    assert_eq!(compared(&dir)[0]["average_accuracy"]["n"], 1);
    fs::write(dir.join("configs/seed-1.toml"), "{ damaged").expect("written");
    let output = cdl(&["compare", path, "--paper"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("seed-1 is skipped") && stderr(&output).contains("configs/seed-1.toml"));

    // No row has two distillers; a list of one counts as that distiller.
    let dir = folder.path().join("several");
    let preset = "configs/preset/cifar100_base_small.toml";
    write_run(&dir, &[preset], &["distillers=[{name=\"kd\"},{name=\"dkd\"}]"]);
    assert_eq!(compared(&dir)[0]["subject"]["distiller"], "kd and dkd");
    assert_eq!(compared(&dir)[0]["published"], json!([]));
    write_run(&dir, &[preset], &["distillers=[{name=\"kd\"}]"]);
    assert_eq!(compared(&dir)[0]["published"][0]["average_accuracy"], 83.03);

    let output = cdl(&["compare", folder.path().to_str().expect("UTF-8 path"), "--paper"]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("expected a run directory"), "{}", stderr(&output));
}

#[test]
fn configurations_of_the_repository_have_the_settings_of_every_row() {
    cdl_plugins::link();
    let (names, settings) = (asset("names.csv"), asset("settings.csv"));
    let ours = |column: &str, published: &str| {
        let name = names.iter().find(|name| name["column"] == column && name["published"] == published);
        name.unwrap_or_else(|| panic!("{column} {published}"))["ours"].clone()
    };
    let weights = |network: &str| format!("preset:{}_augreg", network.to_lowercase().replace('-', "_"));
    let (mut seen, mut missing) = (BTreeSet::new(), BTreeSet::new());
    for row in asset("table.csv") {
        let kd = ours("kd", &row["kd"]);
        if kd.is_empty() {
            missing.insert(row["kd"].clone());
            continue;
        }
        if !seen.insert(
            row.iter()
                .filter(|(key, _)| !["acc", "forget", "version"].contains(&key.as_str()))
                .map(|(_, value)| value.clone())
                .collect::<Vec<_>>(),
        ) {
            continue;
        }
        let size = if row["teacher"] == "ViT-Large" { "large_base" } else { "base_small" };
        let file = |folder: &str, name: &str| repository().join("configs").join(folder).join(name);
        let mut files = vec![
            file("preset", &format!("{}_{size}.toml", ours("dataset", &row["dataset"]))),
            file("learner", &format!("{}.toml", ours("learner", &row["learner"]))),
            file("distiller", &format!("{kd}.toml")),
        ];
        if row["teacher"] == "#" {
            files.push(file("baseline", "student_alone.toml"));
        }
        let sets = [format!("student.weights={}", weights(&row["student"]))];
        let config = Config::load(&files, &sets).unwrap_or_else(|e| panic!("{row:?}: {e}"));
        let rows = config.explain().expect("values");
        let value = |key: &str| rows.iter().find(|(own, ..)| own == key).map(|(_, value, _)| value.clone());
        if row["teacher"] != "#" {
            assert_eq!(value("teacher.weights"), Some(format!("{:?}", weights(&row["teacher"]))), "{row:?}");
        }
        assert_eq!(value("stream.tasks"), Some(row["tasks"].clone()));
        for setting in &settings {
            let (column, published) = (&setting["column"], &setting["published"]);
            let applies =
                column == "*" || row[column] == *published || (published == "*" && row[column] != "#");
            let key = setting["key"].split('|').next_back().expect("a key");
            // Values that only a run has, and unknown values, are skipped.
            if !applies
                || setting["of"] == "teacher"
                || key.contains(['/'])
                || key.starts_with("results.")
                || setting["value"] == "?"
            {
                continue;
            }
            let same = match (value(key), setting["value"].as_str()) {
                (found, "-") => found.is_none(),
                (None, _) => false,
                (Some(found), stated) => {
                    let json: Value = serde_json::from_str(stated).expect("JSON");
                    let found: Value =
                        serde_json::from_str(&found).expect("a value of TOML that is JSON too");
                    found == json || (found.is_number() && found.as_f64() == json.as_f64())
                }
            };
            assert!(same, "{row:?}: {key} is {:?}, stated {}", value(key), setting["value"]);
        }
    }
    assert_eq!(missing.into_iter().collect::<Vec<_>>(), ["DeiT"], "methods without a counterpart");
    assert!(seen.len() > 90, "{}", seen.len());
}
