//! Grids of runs, through the program.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![cfg(unix)]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread::sleep,
    time::Duration,
};

use common::{TINY, cdl, command, said};
use serde_json::Value;

/// Everything that is written about a sweep and says nothing of when and where it ran.
const TABLES: [&str; 5] = ["sweep.csv", "sweep.md", "sweep.tex", "summary.json", "accuracy.svg"];
const FILES: &str = "configs/distiller/none.toml,configs/distiller/kd_prompts.toml";

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8 path")
}

/// `cdl sweep` of the quickstart into `dir`, a matter of seconds.
fn sweep<'a>(dir: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    [&["sweep", "configs/quickstart.toml", "--out", path(dir)][..], &TINY, more].concat()
}

fn done(args: &[&str]) -> Output {
    let output = cdl(args);
    assert!(output.status.success(), "{args:?}: {}", said(&output));
    output
}

fn json(file: &Path) -> Value {
    serde_json::from_slice(&fs::read(file).expect("file")).expect("JSON")
}

fn text(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

fn tables(dir: &Path) -> Vec<String> {
    TABLES.iter().map(|name| text(&dir.join(name))).collect()
}

/// State of every cell by name.
fn states(dir: &Path) -> Vec<(String, String)> {
    let manifest = json(&dir.join("sweep.json"));
    let cells = manifest["cells"].as_array().expect("cells").iter();
    let word = |value: &Value| value.as_str().expect("text").to_string();
    cells.map(|cell| (word(&cell["name"]), word(&cell["state"]))).collect()
}

/// What a run came to, less what measures time and memory.
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
fn cells_are_the_runs_that_one_would_start_alone_and_tables_say_what_they_have_in_common() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().join("grid");
    let grid = |seeds| sweep(&dir, &["--vary-file", FILES, "--seeds", seeds, "--jobs", "2"]);
    let output = done(&grid("1,2,3"));
    assert!(said(&output).contains("6/6 distiller-"), "{}", said(&output));
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
            done(&[&run[..], &TINY].concat());
            assert!(outcome(&cell) == outcome(&alone), "{distiller} {seed}");
        }
    }

    // Straight from the definitions.
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
        assert!(!page.contains(foreign), "{foreign}: the page needs nothing else");
    }
    let svg = text(&dir.join("accuracy.svg"));
    assert_eq!(svg.matches("fill-opacity").count(), 4, "a band for each network of each combination");

    // More seeds: what is done stays untouched.
    let untouched = dir.join("cells/distiller-none--seed-1/log.txt");
    let before = text(&untouched);
    let output = done(&grid("1,2,3,4"));
    assert!(said(&output).contains("6 of 8 cells are done already"), "{}", said(&output));
    assert_eq!(text(&untouched), before);
    assert_eq!(json(&dir.join("summary.json"))["combinations"][0]["student"]["forgetting"]["n"], 4);
    let all = tables(&dir);
    fs::remove_file(dir.join("sweep.md")).expect("removed");
    done(&["resume", path(&dir)]);
    assert_eq!(tables(&dir), all);
}

#[test]
fn a_cell_that_fails_stops_no_other_and_is_named() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().join("grid");
    let args = sweep(&dir, &["--vary", "optimizer.lr=1e30,5e-3", "--seeds", "1,2", "--jobs", "2"]);
    let output = cdl(&args);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let end = said(&output).split_once("2 of 4 cells failed").expect("an end").1.to_string();
    for cell in ["optimizer.lr-1e30--seed-1: ", "optimizer.lr-1e30--seed-2: "] {
        let reason = end.lines().find_map(|line| line.trim().strip_prefix(cell)).expect("a reason");
        assert!(reason.contains("became") && reason.contains("optimizer.lr"), "{reason}");
    }
    let of = |cell: &str| states(&dir).into_iter().find(|(name, _)| name == cell).expect("cell").1;
    assert_eq!(of("optimizer.lr-1e30--seed-1"), "failed");
    assert_eq!(of("optimizer.lr-5e-3--seed-2"), "done");
    let summary = json(&dir.join("summary.json"));
    assert_eq!(summary["combinations"][0]["student"]["forgetting"], Value::Null);
    assert_eq!(summary["combinations"][1]["student"]["forgetting"]["n"], 2);
    assert!(text(&dir.join("sweep.html")).contains("failed<small>"));
    // What is there can be collected again, and says the same.
    let all = tables(&dir);
    done(&["sweep", "--resume", path(&dir), "--collect"]);
    assert_eq!(tables(&dir), all);
    assert_eq!(of("optimizer.lr-1e30--seed-2"), "failed");
}

/// Cells of about a second or two each.
const LONGER: [&str; 8] = [
    "--set",
    "epochs=3",
    "--set",
    "stream.train_per_class=8",
    "--vary",
    "distiller.name=none,kd",
    "--seeds",
    "1,2",
];

fn start(args: &[&str]) -> Child {
    command().args(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("cdl starts")
}

/// Waits until some cell has begun and is not finished.
fn wait_for_work(dir: &Path, child: &mut Child) -> bool {
    let begun = || -> bool {
        let cells: Vec<PathBuf> = fs::read_dir(dir.join("cells"))
            .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default();
        cells.iter().any(|cell| cell.join("checkpoints").exists())
    };
    while !begun() {
        if child.try_wait().expect("child").is_some() {
            return false;
        }
        sleep(Duration::from_millis(5));
    }
    true
}

#[test]
fn a_sweep_that_is_killed_or_stopped_ends_with_the_tables_of_one_that_was_not() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let whole = folder.path().join("whole/grid");
    done(&sweep(&whole, &LONGER));

    let killed = folder.path().join("killed/grid");
    let more = [&LONGER[..], &["--jobs", "2"]].concat();
    let args = sweep(&killed, &more);
    for _ in 0..2 {
        let mut child = start(&args);
        if wait_for_work(&killed, &mut child) {
            child.kill().expect("SIGKILL");
        }
        child.wait().expect("end");
    }
    // What the environment says now is no part of a sweep that was begun.
    let output = command().args(["resume", path(&killed)]).env("CDL_EPOCHS", "9").output().expect("cdl");
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(tables(&killed), tables(&whole));

    let stopped = folder.path().join("stopped/grid");
    let args = sweep(&stopped, &more);
    let mut child = start(&args);
    assert!(wait_for_work(&stopped, &mut child), "it ended before it could be stopped");
    let kill = format!("kill -TERM {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().expect("kill").success());
    let output = child.wait_with_output().expect("end");
    assert_eq!(output.status.code(), Some(143), "{}", said(&output));
    assert!(said(&output).contains("go on with: cdl resume"), "{}", said(&output));
    let left = states(&stopped);
    assert!(left.iter().any(|(_, state)| state == "stopped" || state == "waiting"), "{left:?}");
    assert!(left.iter().all(|(_, state)| state != "running" && state != "failed"), "{left:?}");
    done(&args);
    assert_eq!(tables(&stopped), tables(&whole));
}

#[test]
fn all_mistakes_of_all_cells_are_named_before_anything_is_written() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().join("grid");
    let refused = |more: &[&str], expected: &[&str]| {
        let output = cdl(&sweep(&dir, more));
        assert_eq!(output.status.code(), Some(2), "{more:?}: {}", said(&output));
        for expected in expected {
            assert!(said(&output).contains(expected), "{more:?}: {expected} in {}", said(&output));
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
    refused(&["--vary", "distiller=none,kd"], &["its name is `distiller.name`"]);
    refused(&["--seeds", "1,1"], &["a value is given twice"]);
    refused(&["--vary", "optimizer.lr=1e-3,0.001"], &["would be the same run as optimizer.lr-1e-3"]);
    refused(&["--vary", "seed=1,2", "--seeds", "3"], &["`seed` is varied twice"]);
    refused(&["--vary", "epochs=1,2"], &["--set epochs=1: `epochs` is varied as well"]);
    refused(&["--vary", "learner.pool"], &["expected KEY=VALUE,VALUE"]);
    refused(&["--vary", "learner.pool=5,,6"], &["a value is empty"]);
    refused(
        &["--vary-file", "configs/distiller/none.toml,configs/none.toml"],
        &["configs/none.toml", "cannot be read"],
    );
    refused(
        &["--seeds", "1,2", "--baseline", "distiller=kd"],
        &["nothing that is varied is called `distiller`"],
    );
    refused(&["--jobs", "0"], &["--jobs 0"]);

    // A folder of something else, and a sweep that was begun with other settings.
    fs::create_dir(&dir).expect("folder");
    fs::write(dir.join("notes.txt"), "mine").expect("written");
    let output = cdl(&sweep(&dir, &["--seeds", "1"]));
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("holds something that is not a sweep"), "{}", said(&output));
    assert_eq!(fs::read_dir(&dir).expect("folder").count(), 1);

    let dir = folder.path().join("other");
    done(&sweep(&dir, &["--seeds", "1,2"]));
    let before = text(&dir.join("sweep.toml"));
    for (more, expected) in [
        (&["--seeds", "1,2", "--set", "optimizer.lr=0.1"][..], "`optimizer.lr = 0.1`"),
        (&["--seeds", "1"][..], "such as seed-2"),
    ] {
        let output = cdl(&sweep(&dir, more));
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert!(said(&output).contains(expected), "{}", said(&output));
        assert_eq!(text(&dir.join("sweep.toml")), before);
    }
    // A run that is not the cell's in its place.
    let cells = dir.join("cells");
    fs::rename(cells.join("seed-1"), folder.path().join("aside")).expect("moved");
    fs::rename(cells.join("seed-2"), cells.join("seed-1")).expect("moved");
    let output = cdl(&["resume", path(&dir)]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("is not this sweep's: ") && said(&output).contains("`seed = 2`"));
}

#[test]
fn class_orders_are_repeated_as_seeds_are() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().join("grid");
    done(&sweep(&dir, &["--vary", "distiller.name=none,kd", "--orders", "5,6"]));
    let classes = |run: &Path| json(&run.join("run.json"))["classes"].clone();
    let of = |name: &str| classes(&dir.join("cells").join(name));
    let first = of("distiller-none--class_order-5");
    assert_eq!(first, of("distiller-kd--class_order-5"));
    assert_ne!(first, of("distiller-none--class_order-6"));
    let alone = folder.path().join("alone");
    let sets = ["--set", "stream.class_order=shuffled", "--set", "seed=5", "--run-dir", path(&alone)];
    done(&[&["run", "configs/quickstart.toml"][..], &sets, &TINY].concat());
    assert_eq!(first, classes(&alone), "the order is that of a run with this seed");
}

/// Runs the script as one job of the array, with a `scontrol` that only says that it was called.
fn job(script: &Path, index: usize, bin: &Path) -> Command {
    let mut job = Command::new("bash");
    let found = std::env::var("PATH").unwrap_or_default();
    job.arg(script)
        .env("SLURM_ARRAY_TASK_ID", index.to_string())
        .env("SLURM_ARRAY_JOB_ID", "7")
        .env("SLURM_CPUS_PER_TASK", "1")
        .env("PATH", format!("{}:{found}", bin.display()))
        .stderr(Stdio::piped());
    job
}

#[test]
fn a_job_array_runs_the_same_cells() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("temporary folder");
    let local = folder.path().join("local/grid");
    done(&sweep(&local, &LONGER));
    // A place that a careless script would take for several words.
    let dir = folder.path().join("it's a cluster/grid");
    let output = done(&sweep(&dir, &[&LONGER[..], &["--emit", "slurm"]].concat()));
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(told.contains("sbatch ") && told.contains("--collect"), "{told}");
    let script = dir.join("sweep.slurm");
    let lines = text(&script);
    for line in ["#SBATCH --array=0-3", "#SBATCH --signal=B:TERM@", "#SBATCH --requeue"] {
        assert!(lines.contains(line), "{line} in {lines}");
    }
    assert!(!dir.join("cells").exists(), "nothing was run");

    let bin = folder.path().join("bin");
    fs::create_dir(&bin).expect("folder");
    let called = folder.path().join("requeued");
    let scontrol = bin.join("scontrol");
    fs::write(&scontrol, format!("#!/bin/sh\necho \"$@\" > '{}'\n", called.display())).expect("written");
    fs::set_permissions(&scontrol, fs::Permissions::from_mode(0o755)).expect("executable");

    // The first job meets its time limit, and is queued again.
    let mut child = job(&script, 0, &bin).spawn().expect("bash");
    assert!(wait_for_work(&dir, &mut child), "it ended before it could be stopped");
    let kill = format!("kill -TERM {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().expect("kill").success());
    let output = child.wait_with_output().expect("end");
    assert_eq!(output.status.code(), Some(143), "{}", said(&output));
    assert_eq!(text(&called).trim(), "requeue 7_0");
    for index in 0..4 {
        let output = job(&script, index, &bin).output().expect("bash");
        assert!(output.status.success(), "{index}: {}", said(&output));
    }
    let output = job(&script, 4, &bin).output().expect("bash");
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("the cells 0 to 3"), "{}", said(&output));
    done(&["sweep", "--resume", path(&dir), "--collect"]);
    assert_eq!(tables(&dir), tables(&local));
    assert!(states(&dir).iter().all(|(_, state)| state == "done"));
}
