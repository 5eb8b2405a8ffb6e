//! `cdl sweep`: cells, tables, errors and damaged files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::common::{
    TINY, cdl, stderr, succeed,
    sweeps::{json, path, state, states, sweep, tables, text},
};
use serde_json::Value;

const FILES: &str = "configs/distiller/none.toml,configs/distiller/kd_prompts.toml";

/// Main files of a run, without times and memory.
fn outcome(run: &Path) -> Vec<Vec<u8>> {
    let mut results = json(&run.join("results.json"));
    for measured in ["wall_seconds", "peak_memory_bytes"] {
        results.as_object_mut().expect("object").remove(measured);
    }
    let files = [
        "config.toml",
        "accuracy_student.csv",
        "confusion_teacher.csv",
        "models/task_1/teacher.safetensors",
        "models/task_2/student.safetensors",
    ];
    let read = |name: &str| fs::read(run.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    files.into_iter().map(read).chain([results.to_string().into_bytes()]).collect()
}

#[test]
fn cells_equal_single_runs_and_tables_contain_their_statistics() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().join("grid");
    let grid = |seeds| sweep(&dir, &["--vary-file", FILES, "--seeds", seeds, "--jobs", "2"]);
    let output = succeed(&grid("1,2,3"));
    assert!(stderr(&output).contains("6/6 distiller-"), "{}", stderr(&output));
    let mut accuracies = Vec::new();
    for distiller in ["none", "kd_prompts"] {
        for seed in ["1", "2", "3"] {
            let cell = dir.join("cells").join(format!("distiller-{distiller}--seed-{seed}"));
            let results = json(&cell.join("results.json"));
            accuracies.push(results["student"]["average_accuracy"].as_f64().expect("accuracy"));
            if seed == "3" {
                continue;
            }
            let (file, seed) = (format!("configs/distiller/{distiller}.toml"), format!("seed={seed}"));
            let alone = folder.path().join(format!("{distiller}-{seed}"));
            let run = ["run", "configs/quickstart.toml", &file, "--run-dir", path(&alone), "--set", &seed];
            succeed(&[&run[..], &TINY].concat());
            assert!(outcome(&cell) == outcome(&alone), "{distiller} {seed}");
        }
    }

    // Expected statistics, computed from their definitions.
    let mean = |values: &[f64]| values.iter().sum::<f64>() / 3.0;
    let deviation = |values: &[f64]| {
        (values.iter().map(|value| (value - mean(values)).powi(2)).sum::<f64>() / 2.0).sqrt()
    };
    let apart: Vec<f64> = (0..3).map(|seed| accuracies[3 + seed] - accuracies[seed]).collect();
    let half = 4.302652729911275 * deviation(&apart) / 3f64.sqrt();
    let summary = json(&dir.join("summary.json"));
    let found = &summary["combinations"][1]["student"]["average_accuracy"];
    let close = |found: &Value, expected: f64| {
        assert!((found.as_f64().expect("number") - expected).abs() < 1e-9, "{found} {expected}");
    };
    assert_eq!(summary["baseline"]["distiller"], "none");
    assert_eq!(found["n"], 3);
    close(&found["mean"], mean(&accuracies[3..]));
    close(&found["deviation"], deviation(&accuracies[3..]));
    close(&found["difference"]["mean"], mean(&apart));
    close(&found["difference"]["deviation"], deviation(&apart));
    close(&found["difference"]["interval_95"][0], mean(&apart) - half);
    close(&found["difference"]["interval_95"][1], mean(&apart) + half);

    let csv = text(&dir.join("sweep.csv"));
    let line = csv.lines().find(|line| line.starts_with("kd_prompts,student,average_accuracy,3,"));
    let cells: Vec<&str> = line.expect("a row").split(',').collect();
    for (at, key) in [(4, &found["mean"]), (5, &found["deviation"]), (7, &found["difference"]["mean"])] {
        assert_eq!(cells[at].parse().ok(), key.as_f64(), "{csv}");
    }
    let shown = format!("{:.2} ± {:.2}", mean(&accuracies[3..]), deviation(&accuracies[3..]));
    for page in [text(&dir.join("sweep.md")), String::from_utf8_lossy(&output.stdout).into_owned()] {
        assert!(page.contains(&shown), "{shown} in {page}");
    }
    assert!(text(&dir.join("sweep.tex")).contains(&shown.replace('±', "\\pm")));
    let page = text(&dir.join("sweep.html"));
    assert!(page.contains(&format!("<data id=\"2-student-average_accuracy\" value=\"{}\">", found["mean"])));
    for name in states(&dir).iter().map(|(name, _)| name) {
        let link = format!("cells/{name}/report.html");
        assert!(page.contains(&format!("href=\"{link}\"")) && dir.join(link).exists(), "{name}");
    }
    for foreign in ["<script", "src=", "url(", "@import", "href=\"http"] {
        assert!(!page.contains(foreign), "{foreign}: the page has external resources");
    }
    // Wide tables scroll in their own boxes.
    assert_eq!(page.matches("<table").count(), page.matches("<div class=\"wide\"><table").count());
    assert!(page.contains(".wide{overflow-x:auto}"));
    let svg = text(&dir.join("accuracy.svg"));
    assert_eq!(svg.matches("fill-opacity").count(), 4, "a band for each network of each combination");
    assert!(fs::read(dir.join("accuracy.pdf")).expect("figure").starts_with(b"%PDF-"));

    // Links in a sweep from elsewhere are not followed.
    std::os::unix::fs::symlink("..", dir.join("elsewhere")).expect("link");
    let refused = cdl(&grid("1,2,3"));
    assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("contains the link `elsewhere`"), "{}", stderr(&refused));
    fs::remove_file(dir.join("elsewhere")).expect("removed");

    // More seeds: finished cells are not changed.
    let untouched = dir.join("cells/distiller-none--seed-1/log.txt");
    let before = text(&untouched);
    let output = succeed(&grid("1,2,3,4"));
    assert!(stderr(&output).contains("6 of 8 cells already done"), "{}", stderr(&output));
    assert_eq!(text(&untouched), before);
    assert_eq!(json(&dir.join("summary.json"))["combinations"][0]["student"]["forgetting"]["n"], 4);
    let all = tables(&dir);
    fs::remove_file(dir.join("sweep.md")).expect("removed");
    succeed(&["resume", path(&dir)]);
    assert_eq!(tables(&dir), all);
}

#[test]
fn a_failed_cell_is_reported_and_does_not_stop_others() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().join("grid");
    let args = sweep(&dir, &["--vary", "optimizer.lr=1e30,5e-3", "--seeds", "1,2", "--jobs", "2"]);
    let output = cdl(&args);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let end = stderr(&output).split_once("2 of 4 cells failed").expect("an end").1.to_string();
    for cell in ["optimizer.lr-1e30--seed-1: ", "optimizer.lr-1e30--seed-2: "] {
        let reason = end.lines().find_map(|line| line.trim().strip_prefix(cell)).expect("a reason");
        assert!(reason.contains("became") && reason.contains("optimizer.lr"), "{reason}");
    }
    let of = |cell: &str| state(&dir, cell).0;
    assert_eq!(of("optimizer.lr-1e30--seed-1"), "failed");
    assert_eq!(of("optimizer.lr-5e-3--seed-2"), "done");
    let summary = json(&dir.join("summary.json"));
    assert_eq!(summary["combinations"][0]["student"]["forgetting"], Value::Null);
    assert_eq!(summary["combinations"][1]["student"]["forgetting"]["n"], 2);
    assert!(text(&dir.join("sweep.html")).contains("failed<small>"));
    // Collecting again gives the same tables.
    let all = tables(&dir);
    succeed(&["sweep", "--resume", path(&dir), "--collect"]);
    assert_eq!(tables(&dir), all);
    assert_eq!(of("optimizer.lr-1e30--seed-2"), "failed");
}

#[test]
fn errors_of_all_cells_are_reported_before_anything_is_written() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().join("grid");
    let refused = |more: &[&str], expected: &[&str]| {
        let output = cdl(&sweep(&dir, more));
        assert_eq!(output.status.code(), Some(2), "{more:?}: {}", stderr(&output));
        for expected in expected {
            assert!(stderr(&output).contains(expected), "{more:?}: {expected} in {}", stderr(&output));
        }
        assert!(!dir.exists(), "{more:?}");
    };
    refused(
        &["--vary", "distiller.name=none,kdd", "--vary", "learner.pool=5,six", "--seeds", "1"],
        &[
            "distiller-none--learner.pool-six--seed-1",
            "distiller-kdd--learner.pool-5--seed-1",
            "did you mean `kd`?",
            "`learner.pool = \"six\"`",
        ],
    );
    refused(&["--vary", "distiller=none,kd"], &["`distiller.name` sets its name"]);
    refused(&["--seeds", "1,1"], &["`seed`: 1 is given twice"]);
    refused(&[], &["nothing is varied: expected --vary"]);
    refused(&["--vary", "optimizer.lr=1e-3,0.001"], &["would be the same run as optimizer.lr-1e-3"]);
    refused(&["--vary", "seed=1,2", "--seeds", "3"], &["`seed` is varied twice"]);
    refused(&["--vary", "epochs=1,2"], &["--set epochs=1: `epochs` is also varied"]);
    refused(&["--vary", "learner.pool"], &["expected KEY=VALUE,VALUE"]);
    refused(&["--vary", "learner.pool=5,,6"], &["a value is empty"]);
    refused(
        &["--vary-file", "configs/distiller/none.toml,configs/none.toml"],
        &["configs/none.toml", "cannot be read"],
    );
    refused(&["--seeds", "1,2", "--baseline", "distiller=kd"], &["`distiller` is not varied"]);
    refused(
        &["--vary", "learner.pool=5,6", "--baseline", "learner.pool=7"],
        &["--baseline learner.pool=7", "expected one of 5, 6"],
    );
    refused(&["--jobs", "0"], &["--jobs 0"]);
    // Errors that are found only by reading data and weights and by building methods.
    refused(
        &["--vary", "learner.pool=10,1", "--vary", "optimizer.lr=1e-3,5e-3", "--seeds", "1,2"],
        &[
            "learner.pool-1--optimizer.lr-1e-3--seed-1, learner.pool-1--optimizer.lr-1e-3--seed-2, learner.pool-1--optimizer\
             .lr-5e-3--seed-1 and 1 more: --set learner.pool=1: `learner.pool = 1`",
        ],
    );
    refused(
        &[
            "--vary",
            "student.weights=embedded:micro_student,no.pth",
            "--vary",
            "stream.transform.image_size=28,30",
        ],
        &[
            "student.weights-no.pth--stream.transform.image_size-28, student.weights-no.pth--stream.transform.image_size-30: ",
            "no file or folder at `no.pth`",
            "`stream.transform.image_size = 30`",
        ],
    );
    refused(&["--vary", "device=cpu,cuda:x"], &["device-cuda_x", "expected auto, cpu, cuda or cuda:N"]);
    refused(&["--vary", "learner.pool=10,1", "--emit", "slurm"], &["learner.pool-1: --set learner.pool=1"]);

    // A folder with other files, and a sweep that was started with other settings.
    fs::create_dir(&dir).expect("folder");
    fs::write(dir.join("notes.txt"), "mine").expect("written");
    let output = cdl(&sweep(&dir, &["--seeds", "1"]));
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("is not a sweep, but contains files"), "{}", stderr(&output));
    assert_eq!(fs::read_dir(&dir).expect("folder").count(), 1);

    let dir = folder.path().join("other");
    succeed(&sweep(&dir, &["--seeds", "1,2"]));
    let before = text(&dir.join("sweep.toml"));
    for (more, expected) in [
        (&["--seeds", "1,2", "--set", "optimizer.lr=0.1"][..], "`optimizer.lr = 0.1`"),
        (&["--seeds", "1"][..], "such as seed-2"),
    ] {
        let output = cdl(&sweep(&dir, more));
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
        assert_eq!(text(&dir.join("sweep.toml")), before);
    }
    // A run in the place of another cell's run.
    let cells = dir.join("cells");
    fs::rename(cells.join("seed-1"), folder.path().join("aside")).expect("moved");
    fs::rename(cells.join("seed-2"), cells.join("seed-1")).expect("moved");
    let output = cdl(&["resume", path(&dir)]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("does not belong to this sweep: ") && stderr(&output).contains("`seed = 2`")
    );
}

#[test]
fn class_orders_are_repetitions() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().join("grid");
    succeed(&sweep(&dir, &["--vary", "distiller.name=none,kd", "--orders", "5,6"]));
    let classes = |run: &Path| json(&run.join("run.json"))["classes"].clone();
    let of = |name: &str| classes(&dir.join("cells").join(name));
    let first = of("distiller-none--class_order-5");
    assert_eq!(first, of("distiller-kd--class_order-5"));
    assert_ne!(first, of("distiller-none--class_order-6"));
    let alone = folder.path().join("alone");
    let sets = ["--set", "stream.class_order=shuffled", "--set", "seed=5", "--run-dir", path(&alone)];
    succeed(&[&["run", "configs/quickstart.toml"][..], &sets, &TINY].concat());
    assert_eq!(first, classes(&alone), "the order is that of a run with the same seed");
}

#[test]
fn a_damaged_file_only_affects_its_cell() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().join("grid");
    let args = sweep(&dir, &["--vary", "distiller.name=none,kd", "--seeds", "1,2", "--jobs", "2"]);
    succeed(&args);
    let whole = tables(&dir);
    let cell = |name: &str, file: &str| dir.join("cells").join(name).join(file);
    let damage = |file: &Path| {
        let before = text(file);
        fs::write(file, "{ damaged\n").expect("written");
        before
    };
    // metrics.jsonl is only used for the page of the run.
    damage(&cell("distiller-none--seed-1", "metrics.jsonl"));
    let output = succeed(&["sweep", "--resume", path(&dir), "--collect"]);
    assert!(
        stderr(&output).contains("distiller-none--seed-1: its page cannot be written: "),
        "{}",
        stderr(&output)
    );
    assert!(text(&dir.join("sweep.html")).contains("metrics.jsonl"));
    assert_eq!(tables(&dir), whole);

    // A run with damaged results is not trained again.
    let results = damage(&cell("distiller-none--seed-1", "results.json"));
    let output = cdl(&["resume", path(&dir)]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("1 of 4 cells cannot be read and is skipped"), "{}", stderr(&output));
    fs::write(cell("distiller-none--seed-1", "results.json"), results).expect("written");

    // Damages the sweep's copy of a configuration and the configuration of a run, and replaces a log by a folder.
    damage(&dir.join("configs/distiller-none--seed-2.toml"));
    let config = damage(&cell("distiller-kd--seed-1", "config.toml"));
    fs::remove_dir_all(dir.join("cells/distiller-kd--seed-2")).expect("removed");
    let log = dir.join("logs/distiller-kd--seed-2.txt");
    fs::remove_file(&log).expect("removed");
    fs::create_dir(&log).expect("folder");
    let output = succeed(&["sweep", "--resume", path(&dir), "--collect"]);
    assert!(stderr(&output).contains("3 of 4 cells not done"), "{}", stderr(&output));
    for name in ["distiller-none--seed-2", "distiller-kd--seed-1"] {
        let skipped = format!("{name} cannot be read and is skipped: ");
        assert!(stderr(&output).contains(&skipped), "{skipped} in {}", stderr(&output));
    }
    let output = cdl(&["resume", path(&dir)]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    for expected in ["1 of 4 cells failed; ", "runs them again; 2 cannot be read and are skipped\n"] {
        assert!(stderr(&output).contains(expected), "{expected} in {}", stderr(&output));
    }
    for (name, word, file) in [
        ("distiller-none--seed-2", "unreadable", "configs/distiller-none--seed-2.toml"),
        ("distiller-kd--seed-1", "unreadable", "distiller-kd--seed-1/config.toml"),
        ("distiller-kd--seed-2", "failed", "logs/distiller-kd--seed-2.txt"),
    ] {
        let (found, reason) = state(&dir, name);
        assert_eq!(found, word, "{name}");
        assert!(reason.contains(file) && stderr(&output).contains(&reason), "{name}: {reason}");
    }
    let summary = json(&dir.join("summary.json"));
    assert_eq!(summary["combinations"][0]["student"]["forgetting"]["n"], 1);
    assert_eq!(summary["combinations"][1]["student"]["forgetting"]["n"], Value::Null);

    // Repeating the command restores the configuration; the other files are repaired by hand.
    fs::write(cell("distiller-kd--seed-1", "config.toml"), config).expect("written");
    fs::remove_dir(&log).expect("removed");
    let output = succeed(&args);
    assert!(stderr(&output).contains("it is written again"), "{}", stderr(&output));
    assert_eq!(tables(&dir), whole);
}

#[test]
fn baseline_and_jobs_are_stored() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().join("grid");
    let grid = |more: &[&'static str]| {
        let vary = ["--vary", "distiller.name=none,kd", "--emit", "slurm"];
        succeed(&[&sweep(&dir, &vary)[..], more].concat());
    };
    let plan = || -> toml::Table { text(&dir.join("sweep.toml")).parse().expect("TOML") };
    let kept = |jobs: i64, baseline: &str| {
        let plan = plan();
        assert_eq!(plan["jobs"].as_integer(), Some(jobs));
        assert_eq!(plan["baseline"][0].as_str(), Some(baseline));
    };
    grid(&["--jobs", "2", "--baseline", "distiller=kd"]);
    kept(2, "distiller=kd");
    grid(&[]);
    kept(2, "distiller=kd");
    grid(&["--jobs", "3"]);
    kept(3, "distiller=kd");
    let collect = ["sweep", "--resume", path(&dir), "--collect"];
    succeed(&[&collect[..], &["--baseline", "distiller.name=none"]].concat());
    kept(3, "distiller.name=none");
    succeed(&collect);
    kept(3, "distiller.name=none");
    let output = cdl(&[&collect[..], &["--baseline", "distiller=dkd"]].concat());
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    kept(3, "distiller.name=none");
}

#[test]
fn files_of_the_same_name_are_distinguished_by_their_folders() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().join("grid");
    let files: Vec<PathBuf> = ["strong", "weak"]
        .iter()
        .zip(["0.5", "0.1"])
        .map(|(name, weight)| {
            let file = folder.path().join(name).join("kd.toml");
            fs::create_dir(file.parent().expect("folder")).expect("made");
            fs::write(&file, format!("[distiller]\nname = \"kd\"\nweight = {weight}\n")).expect("written");
            file
        })
        .collect();
    let both = format!("method={},{}", path(&files[0]), path(&files[1]));
    succeed(&sweep(&dir, &["--vary-file", &both, "--emit", "slurm"]));
    let manifest = json(&dir.join("sweep.json"));
    let labels: Vec<&Value> =
        manifest["cells"].as_array().expect("cells").iter().map(|cell| &cell["values"]["method"]).collect();
    assert_eq!(labels, ["strong/kd", "weak/kd"]);
    let names: Vec<String> = states(&dir).into_iter().map(|(name, _)| name).collect();
    assert!(
        names[0].starts_with("method-strong_kd-") && names[1].starts_with("method-weak_kd-"),
        "{names:?}"
    );
    let again = format!("method={},{}", path(&files[0]), path(&files[0]));
    let output = cdl(&sweep(&folder.path().join("twice"), &["--vary-file", &again]));
    assert!(stderr(&output).contains("`method`: kd.toml is given twice"), "{}", stderr(&output));
}

#[test]
fn commands_that_expect_a_run_refuse_a_sweep() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().join("grid");
    let boots = folder.path().join("boots");
    let grid = |more: &[&'static str]| succeed(&sweep(&dir, &[&["--seeds", "1,2"][..], more].concat()));
    let refused = |expected: &str| {
        for args in [
            &["report", path(&dir)][..],
            &["eval", path(&dir)],
            &["export", path(&dir), "--student", path(&boots)],
        ] {
            let output = cdl(args);
            assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
            for expected in [expected, "is a sweep, not a run", "--collect"] {
                assert!(stderr(&output).contains(expected), "{args:?}: {expected} in {}", stderr(&output));
            }
        }
    };
    grid(&["--emit", "slurm"]);
    refused("none of its runs has started");
    grid(&[]);
    refused("; for one of them: cdl ");
    assert!(!boots.exists() && !dir.join("report.html").exists());
}
