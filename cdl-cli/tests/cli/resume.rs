//! Runs that are killed or stopped and resumed end with the same bytes as uninterrupted runs.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use crate::common::{cdl, command, repository, stderr};
use cdl_core::{rng::Rng, run::Checkpoint};
use serde_json::Value;

/// Settings of a short run: two tasks with two epochs of four steps, 32 steps of the two networks together.
const SHORT: [&str; 5] =
    ["epochs=2", "batch_size=10", "stream.tasks=2", "stream.train_per_class=8", "stream.test_per_class=2"];

/// Settings that halve the images and keep the number of steps.
const HALF: [&str; 3] = ["batch_size=5", "stream.train_per_class=4", "stream.test_per_class=1"];

/// Every learner with state, with one or several distillers with state.
const CASES: [(&str, &str, &[&str]); 4] = [
    ("coda_prompt", "[{ name = \"kd_prompts\" }]", &["checkpoint.every_steps=1"]),
    ("dual_prompt", "[{ name = \"review_kd\" }, { name = \"fitnets\" }]", &["optimizer.name=amsgrad"]),
    ("l2p", "[{ name = \"kd_prompts\" }, { name = \"review_kd\" }]", &["checkpoint.every_steps=3"]),
    ("apt", "[{ name = \"fitnets\" }]", &["checkpoint.every_steps=2", "stream.memory=10"]),
];

/// Arguments of a run of the quickstart with `files` and `sets` into `dir`.
fn run_args(dir: &Path, files: &[String], sets: &[&str]) -> Vec<String> {
    let mut args: Vec<String> = ["run", "configs/quickstart.toml"].map(String::from).into();
    args.extend_from_slice(files);
    args.extend(["--run-dir".into(), dir.display().to_string()]);
    args.extend(sets.iter().flat_map(|set| ["--set".to_string(), set.to_string()]));
    args
}

fn resume_args(dir: &Path) -> Vec<String> {
    vec!["resume".into(), dir.display().to_string()]
}

fn finish(args: &[String]) -> Output {
    let output = cdl(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    output
}

fn start(args: &[String]) -> Child {
    command().args(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("cdl starts")
}

/// Contents of all files of a run by name, without the log, times and memory.
fn outcome(dir: &Path) -> BTreeMap<String, String> {
    fn collect(root: &Path, folder: &Path, files: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(folder).expect("folder") {
            let path = entry.expect("entry").path();
            match path.is_dir() {
                true => collect(root, &path, files),
                false => {
                    let name = path.strip_prefix(root).expect("below").display().to_string();
                    files.insert(name, fs::read(&path).expect("file"));
                }
            }
        }
    }
    let mut files = BTreeMap::new();
    collect(dir, dir, &mut files);
    let without = |text: &[u8], keys: &[&str]| -> String {
        let lines = serde_json::Deserializer::from_slice(text).into_iter::<Value>();
        let strip = |line: serde_json::Result<Value>| {
            let mut line = line.expect("JSON");
            keys.iter().for_each(|key| drop(line.as_object_mut().expect("object").remove(*key)));
            line.to_string()
        };
        lines.map(strip).collect::<Vec<_>>().join("\n")
    };
    files
        .into_iter()
        .map(|(name, bytes)| {
            let content = match name.as_str() {
                "log.txt" | ".lock" => String::new(),
                "results.json" => without(&bytes, &["wall_seconds", "peak_memory_bytes"]),
                "metrics.jsonl" => without(&bytes, &["seconds", "images_per_second"]),
                "run.json" => without(&bytes, &["started"]),
                _ => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
            };
            (name, content)
        })
        .collect()
}

fn assert_equal(found: &Path, whole: &Path, what: &str) {
    let (found, whole) = (outcome(found), outcome(whole));
    assert_eq!(found.keys().collect::<Vec<_>>(), whole.keys().collect::<Vec<_>>(), "{what}");
    for (name, content) in &found {
        assert!(*content == whole[name], "{what}: {name} differs");
    }
}

/// Checkpoints of a run, the newest last.
fn checkpoints(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.join("checkpoints")).into_iter().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("entry").path()).collect();
    files.retain(|file| file.extension().is_some_and(|end| end == "safetensors"));
    files.sort();
    files
}

/// Kills up to ten processes of one run after random times of up to `at_most` seconds, and resumes it each time until
/// it is finished. Asserts that every checkpoint is readable after every kill. Returns the number of killed processes.
fn kill_and_resume(dir: &Path, args: &[String], at_most: f32, draw: &mut Rng) -> usize {
    let next = || if dir.exists() { resume_args(dir) } else { args.to_vec() };
    for killed in 0..10 {
        let moment = draw.uniform(&[1], 0.0, at_most, &cdl_core::candle_core::Device::Cpu).expect("numbers");
        let moment = Duration::from_secs_f32(moment.to_vec1::<f32>().expect("numbers")[0]);
        let mut child = start(&next());
        let begun = Instant::now();
        while begun.elapsed() < moment {
            if let Some(status) = child.try_wait().expect("status") {
                assert!(status.success(), "{}", stderr(&child.wait_with_output().expect("end")));
                return killed;
            }
            sleep(Duration::from_millis(1));
        }
        child.kill().expect("SIGKILL");
        child.wait().expect("end");
        for file in checkpoints(dir) {
            let read = Checkpoint::from_bytes(&fs::read(&file).expect("checkpoint"));
            assert!(
                read.is_ok(),
                "{}: {}",
                file.display(),
                read.err().map(|reason| reason.to_string()).unwrap_or_default()
            );
        }
    }
    finish(&next());
    10
}

/// Runs once without interruption, then repeatedly until `kills` processes have been killed, and asserts equal results.
fn check_killed_runs(files: &[String], sets: &[&str], kills: usize) {
    let folder = tempfile::tempdir().expect("temporary folder");
    let whole = folder.path().join("whole");
    let begun = Instant::now();
    finish(&run_args(&whole, files, sets));
    // Half of the run's time, so that most processes are killed but runs finish.
    let at_most = begun.elapsed().as_secs_f32() / 2.0;
    let mut draw = Rng::new(11).derive(&format!("{files:?} {sets:?}"));
    let (mut killed, mut runs) = (0, 0);
    while killed < kills {
        let dir = folder.path().join(format!("killed {runs}"));
        killed += kill_and_resume(&dir, &run_args(&dir, files, sets), at_most, &mut draw);
        runs += 1;
        assert_equal(&dir, &whole, &format!("{files:?} {sets:?}, run {runs}"));
        fs::remove_dir_all(&dir).expect("removed");
        println!("{files:?} {sets:?}: {runs} runs, {killed} killed");
    }
}

fn check_killed_cases(kills: usize, fewer: &[&str]) {
    for (learner, distillers, more) in CASES {
        let distillers = format!("distillers={distillers}");
        let sets = [&SHORT[..], &[distillers.as_str()], more, fewer].concat();
        check_killed_runs(&[format!("configs/learner/{learner}.toml")], &sets, kills);
    }
}

#[test]
fn runs_killed_at_random_times_equal_uninterrupted_ones_for_every_method_with_state() {
    check_killed_cases(4, &HALF);
}

/// Run with `cargo test --release -p cdl-cli --test cli -- --ignored resume`; takes a quarter of an hour.
#[test]
#[ignore = "takes minutes"]
fn fifty_kills_over_the_quickstart() {
    check_killed_runs(&[], &[], 50);
}

#[test]
#[ignore = "takes minutes"]
fn fifty_kills_over_every_method_with_state() {
    check_killed_cases(13, &[]);
}

/// Starts the short run with one more epoch, waits for three checkpoints and sends a signal. Returns its output.
fn stopped(dir: &Path, signal: &str, more: &[&str]) -> Output {
    let sets = [&SHORT[..], &["epochs=3", "checkpoint.every_steps=1", "checkpoint.keep=3"], more].concat();
    let child = start(&run_args(dir, &[], &sets));
    wait_until(|| checkpoints(dir).len() == 3);
    send(&child, signal);
    child.wait_with_output().expect("end")
}

fn wait_until(condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(60), "timeout");
        sleep(Duration::from_millis(1));
    }
}

fn send(child: &Child, signal: &str) {
    let kill = format!("kill -{signal} {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().expect("kill").success());
}

/// Runs with the settings of [`stopped`], without interruption.
fn uninterrupted(dir: &Path) {
    finish(&run_args(
        dir,
        &[],
        &[&SHORT[..], &["epochs=3", "checkpoint.every_steps=1", "checkpoint.keep=3"]].concat(),
    ));
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-r").args([from, to]).status().expect("cp").success());
}

fn refused(args: &[&str], words: &[&str]) {
    let output = cdl(args);
    let stderr = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
    for word in words {
        assert!(stderr.contains(word), "{args:?}: `{word}` is missing in: {stderr}");
    }
}

#[test]
fn signals_stop_after_the_step_and_the_message_names_the_command_to_continue() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let reference = folder.path().join("whole");
    uninterrupted(&reference);
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let dir = folder.path().join(signal);
        let output = stopped(&dir, signal, &[]);
        let path = dir.display().to_string();
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        let expected = format!("error: stopped by SIG{signal} and saved; continue with: cdl resume {path}");
        assert!(stderr(&output).contains(&expected), "{}", stderr(&output));
        let output = finish(&resume_args(&dir));
        assert!(stderr(&output).contains("resuming at task 1, teacher, epoch "), "{}", stderr(&output));
        assert_equal(&dir, &reference, signal);
        let output = finish(&resume_args(&dir));
        assert!(String::from_utf8_lossy(&output.stdout).contains("is finished"));
        assert_equal(&dir, &reference, "resumed after it was finished");
    }
    // With stream.max_tasks = 1 the run is finished after its first task.
    let first = folder.path().join("first");
    let output = finish(&run_args(&first, &[], &[&SHORT[..], &["epochs=1", "stream.max_tasks=1"]].concat()));
    let results = fs::read(first.join("results.json")).expect("results");
    assert!(output.status.success());
    let output = finish(&resume_args(&first));
    assert!(String::from_utf8_lossy(&output.stdout).contains("is finished"), "{}", stderr(&output));
    assert_eq!(fs::read(first.join("results.json")).expect("results"), results);
    let off = folder.path().join("off");
    let child = start(&run_args(&off, &[], &[&SHORT[..], &["epochs=3", "checkpoint.off=true"]].concat()));
    wait_until(|| fs::metadata(off.join("metrics.jsonl")).is_ok_and(|file| file.len() > 0));
    send(&child, "INT");
    let output = child.wait_with_output().expect("end");
    assert!(stderr(&output).contains("not saved because `checkpoint.off = true`"), "{}", stderr(&output));
    assert!(!off.join("checkpoints").exists());
}

#[test]
fn a_damaged_checkpoint_is_reported_and_an_earlier_one_used() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let [reference, dir] = ["whole", "stopped"].map(|name| folder.path().join(name));
    uninterrupted(&reference);
    stopped(&dir, "INT", &[]);
    let files = checkpoints(&dir);
    assert_eq!(files.len(), 3);
    let name = |file: &Path| file.file_name().expect("name").to_string_lossy().into_owned();
    let damage = |dir: &Path, file: &Path, how: &dyn Fn(&mut Vec<u8>)| {
        let file = dir.join("checkpoints").join(name(file));
        let mut bytes = fs::read(&file).expect("checkpoint");
        how(&mut bytes);
        fs::write(file, bytes).expect("written");
    };
    let flip = |bytes: &mut Vec<u8>| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
    };
    let truncate = |bytes: &mut Vec<u8>| bytes.truncate(bytes.len() / 3);

    let one = folder.path().join("one");
    copy(&dir, &one);
    damage(&one, &files[2], &flip);
    let output = finish(&resume_args(&one));
    let expected = format!("{}: it is damaged: its contents have SHA-256", name(&files[2]));
    assert!(
        stderr(&output).contains(&expected) && stderr(&output).contains("resuming at"),
        "{}",
        stderr(&output)
    );
    assert_equal(&one, &reference, "one damaged");

    let all = folder.path().join("all");
    copy(&dir, &all);
    damage(&all, &files[2], &flip);
    damage(&all, &files[1], &truncate);
    damage(&all, &files[0], &|bytes| bytes.clear());
    let output = finish(&resume_args(&all));
    for file in &files {
        assert!(stderr(&output).contains(&format!("{}: it is damaged", name(file))), "{}", stderr(&output));
    }
    assert!(stderr(&output).contains("the run starts from the beginning"), "{}", stderr(&output));
    assert_equal(&all, &reference, "all damaged");

    // A finished run has no checkpoint and must not be trained again because of damaged results.
    let finished = folder.path().join("finished");
    copy(&reference, &finished);
    let results = finished.join("results.json");
    fs::write(&results, "{").expect("written");
    let path = finished.to_str().expect("path");
    refused(&["resume", path], &["results.json", "the run may be finished"]);
    fs::remove_file(&results).expect("removed");
    finish(&resume_args(&finished));
    assert_equal(&finished, &reference, "results removed");

    // Without a checkpoint, config.toml must still be the original one.
    let edited = folder.path().join("edited");
    copy(&dir, &edited);
    fs::remove_dir_all(edited.join("checkpoints")).expect("removed");
    let config = edited.join("config.toml");
    let text = fs::read_to_string(&config).expect("configuration");
    let other = text.replace("lr = 0.005", "lr = 0.01");
    assert_ne!(other, text);
    fs::write(&config, other).expect("written");
    refused(
        &["resume", edited.to_str().expect("UTF-8 path")],
        &["config.toml was changed after the start of the run"],
    );
    fs::write(&config, text).expect("written");
    assert!(stderr(&finish(&resume_args(&edited))).contains("the run starts from the beginning"));
    assert_equal(&edited, &reference, "no checkpoint");
}

#[test]
fn only_settings_that_cannot_change_results_may_differ() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().join("run");
    stopped(&dir, "INT", &[]);
    let path = dir.to_str().expect("UTF-8 path");
    let before = outcome(&dir);
    let set = |set: &'static str| ["resume", path, "--set", set];
    refused(&set("epochs=5"), &["--set epochs=5", "`epochs = 5`", "started with `3`", "checkpoint.*"]);
    refused(&set("optimizer.lr=0.1"), &["`optimizer.lr = 0.1`", "started with `0.005`"]);
    refused(&set("distiller.name=kd"), &["started with `"]);
    refused(&set("stream.input.on_error=skip"), &["`stream.input.on_error = \"skip\"`", "`\"stop\"`"]);
    refused(&set("checkpoint.keep=0"), &["`checkpoint.keep = 0`", "at least 1"]);
    let mut variable = command();
    let output = variable.args(["resume", path]).env("CDL_SEED", "9").output().expect("cdl");
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("environment variable CDL_SEED: `seed = 9`"), "{}", stderr(&output));

    // Edited configurations and replaced data or weights are refused.
    let edit = |file: &str, from: &str, to: &str| {
        let text = fs::read_to_string(dir.join(file)).expect("file");
        assert!(text.contains(from), "{from} in {text}");
        fs::write(dir.join(file), text.replacen(from, to, 1)).expect("written");
        text
    };
    let config = edit("config.toml", "batch_size = 10", "batch_size = 5");
    refused(&["resume", path], &["config.toml: `batch_size = 5`", "started with `10`"]);
    fs::write(dir.join("config.toml"), config).expect("written");
    let record: Value = serde_json::from_slice(&fs::read(dir.join("run.json")).expect("file")).expect("JSON");
    for (field, what) in [
        ("/split_sha256", "images and tasks are not those of the run"),
        ("/student/provenance/sha256", "the student's weights are not those of the run"),
    ] {
        let sha256 = record.pointer(field).and_then(Value::as_str).expect("SHA-256");
        let other = "0".repeat(64);
        let text = edit("run.json", sha256, &other);
        refused(&["resume", path], &[what, sha256, &other]);
        fs::write(dir.join("run.json"), text).expect("written");
    }
    assert!(outcome(&dir) == before, "nothing was changed");

    let harmless =
        ["stream.input.workers=0", "stream.input.cache_mb=0", "checkpoint.every_steps=0", "device=cpu"];
    let sets = harmless.iter().flat_map(|set| ["--set", set]);
    let args: Vec<&str> = ["resume", path, "--threads", "1"].into_iter().chain(sets).collect();
    let output = cdl(&args);
    assert!(output.status.success(), "{}", stderr(&output));
    let reference = folder.path().join("whole");
    uninterrupted(&reference);
    assert_equal(&dir, &reference, "harmless changes");
    refused(&["resume", "configs"], &["configs: run.json cannot be read", "expected a run directory"]);
}

#[test]
fn settings_of_a_finished_run_are_refused_or_have_no_effect() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().join("run");
    uninterrupted(&dir);
    let path = dir.to_str().expect("UTF-8 path");
    let before = outcome(&dir);
    let set = |set: &'static str| ["resume", path, "--set", set];
    refused(&set("epochs=5"), &["`epochs = 5`", "started with `3`"]);
    refused(&set("epoch=5"), &["epoch", "did you mean `epochs`"]);
    refused(&set("stream.max_tasks=1"), &["`stream.max_tasks = 1`"]);
    let succeeds = |command: &mut Command, expected: &str| {
        let output = command.output().expect("cdl");
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(String::from_utf8_lossy(&output.stdout).contains("is finished"));
        assert_eq!(stderr(&output).contains("has no effect"), !expected.is_empty(), "{}", stderr(&output));
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
    };
    let origin = "--set checkpoint.keep=5: `checkpoint.keep = 5` has no effect: the run in";
    succeeds(command().args(set("checkpoint.keep=5")), origin);
    let mut variable = command();
    succeeds(
        variable.args(["resume", path]).env("CDL_CHECKPOINT__KEEP", "5"),
        "variable CDL_CHECKPOINT__KEEP: ",
    );
    // The value of the run changes nothing.
    succeeds(command().args(set("epochs=3")), "");
    succeeds(command().args(["resume", path]), "");
    assert!(outcome(&dir) == before, "nothing was changed");
}

#[test]
fn two_processes_on_one_directory_are_refused() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().join("run");
    let path = dir.to_str().expect("UTF-8 path");
    let args = run_args(&dir, &[], &[&SHORT[..], &["epochs=200"]].concat());
    let mut child = start(&args);
    wait_until(|| !checkpoints(&dir).is_empty());
    let holder = format!("process {} is writing to it", child.id());
    refused(&["resume", path], &[path, &holder]);
    refused(&["run", "configs/quickstart.toml", "--run-dir", path, "--overwrite"], &[path, &holder]);
    assert!(child.try_wait().expect("status").is_none(), "the first process continues");
    child.kill().expect("SIGKILL");
    child.wait().expect("end");
}

/// A limit on the size of files simulates a full disk: writes fail in the middle of a checkpoint.
#[test]
fn a_checkpoint_that_cannot_be_written_ends_the_run_without_loss() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let [reference, dir] = ["whole", "run"].map(|name| folder.path().join(name));
    uninterrupted(&reference);
    stopped(&dir, "INT", &[]);
    let (path, before) = (dir.to_str().expect("UTF-8 path"), outcome(&dir));
    let limited = command();
    let program = limited.get_program().to_str().expect("UTF-8 path");
    // 200 blocks of 512 or 1,024 bytes; every checkpoint has more than a megabyte.
    let script = format!("trap '' XFSZ; ulimit -f 200; exec '{program}' resume '{path}'");
    let output = Command::new("sh").args(["-c", &script]).current_dir(repository()).output().expect("sh");
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let words = ["checkpoints/", "File too large", "0 finished tasks saved in", "continue with: cdl resume"];
    for word in words {
        assert!(stderr(&output).contains(word), "`{word}` is missing in: {}", stderr(&output));
    }
    let without_metrics = |mut files: BTreeMap<String, String>| {
        // An epoch may have ended; its line is removed on resume.
        files.remove("metrics.jsonl");
        files
    };
    let before = without_metrics(before);
    assert!(without_metrics(outcome(&dir)) == before, "files have changed");

    // Checkpoints in a read-only folder. The superuser can write there, so the check is skipped for root.
    let checkpoints = dir.join("checkpoints");
    let mode = |mode| {
        fs::set_permissions(&checkpoints, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("mode")
    };
    mode(0o555);
    if fs::write(checkpoints.join("probe"), "").is_err() {
        let output = cdl(&["resume", path]);
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(stderr(&output).contains("Permission denied"), "{}", stderr(&output));
        assert!(without_metrics(outcome(&dir)) == before, "files have changed");
    }
    mode(0o755);
    let _ = fs::remove_file(checkpoints.join("probe"));
    finish(&resume_args(&dir));
    assert_equal(&dir, &reference, "after the limit was removed");
}
