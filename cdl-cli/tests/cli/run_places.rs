//! Places of run directories: links, existing folders, replaced runs, and directories from elsewhere or damaged.
#![cfg(unix)]

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Output, Stdio},
    thread::sleep,
    time::Duration,
};

use crate::common::{TINY, cdl, command, repository, stderr};

const CONFIG: &str = "configs/quickstart.toml";

/// Runs the shortened quickstart into `dir`, in the working directory `folder`.
fn run_in(folder: &Path, dir: &str, more: &[&str]) -> Output {
    let config = repository().join(CONFIG);
    let mut command = command();
    command.current_dir(folder).arg("-q").arg("run").arg(config).args(["--run-dir", dir]).args(TINY);
    command.args(more).output().expect("cdl starts")
}

fn succeed_in(folder: &Path, dir: &str, more: &[&str]) {
    let output = run_in(folder, dir, more);
    assert!(output.status.success(), "{dir}: {}", stderr(&output));
}

/// Asserts exit code 2 and a message with all `words`.
fn assert_refused(output: &Output, words: &[&str]) {
    let message = stderr(output);
    assert_eq!(output.status.code(), Some(2), "{message}");
    words.iter().for_each(|word| assert!(message.contains(word), "`{word}` is not in {message}"));
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into()).collect();
    names.sort();
    names
}

fn seed_of(dir: &Path) -> String {
    let config = fs::read_to_string(dir.join("config.toml")).unwrap();
    config.lines().find(|line| line.starts_with("seed = ")).unwrap().into()
}

#[test]
fn an_existing_empty_folder_a_link_and_the_working_directory_can_be_the_output() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for name in ["empty", "target", "here"] {
        fs::create_dir(root.join(name)).unwrap();
    }
    symlink("target", root.join("link")).unwrap();
    // The start of a run that was interrupted before it was complete.
    fs::create_dir_all(root.join("begun/.cdl-aB3dE6")).unwrap();
    fs::write(root.join("begun/config.toml"), "seed = 9").unwrap();
    fs::write(root.join("begun/.lock"), "").unwrap();

    succeed_in(root, "empty", &[]);
    succeed_in(root, "link", &[]);
    succeed_in(&root.join("here"), ".", &[]);
    succeed_in(root, "begun", &[]);
    for dir in ["empty", "target", "here", "begun"] {
        assert!(root.join(dir).join("results.json").exists(), "{dir}");
        let temporary = names(&root.join(dir)).into_iter().find(|name| name.starts_with(".cdl-"));
        assert_eq!(temporary, None, "{dir}");
    }
    assert!(root.join("link").is_symlink());

    // A folder in which the user keeps a configuration of their own is not empty.
    fs::create_dir(root.join("mine")).unwrap();
    fs::write(root.join("mine/config.toml"), "seed = 9").unwrap();
    assert_refused(&run_in(root, "mine", &[]), &["is not a run directory"]);
    assert_eq!(fs::read_to_string(root.join("mine/config.toml")).unwrap(), "seed = 9");
    fs::create_dir_all(root.join("notes/.cdl-notes")).unwrap();
    assert_refused(&run_in(root, "notes", &[]), &["is not a run directory"]);

    // A run behind a link is replaced where it is; the working directory cannot be.
    succeed_in(root, "link", &["--overwrite", "--set", "seed=7"]);
    assert!(root.join("link").is_symlink());
    assert_eq!(seed_of(&root.join("target")), "seed = 7");
    let here = run_in(&root.join("here"), ".", &["--overwrite"]);
    assert_refused(&here, &["run directory .", "is the working directory", "choose another folder"]);
    assert!(root.join("here/results.json").exists());
    let missing = root.join("missing");
    symlink("nowhere", &missing).unwrap();
    assert_refused(&run_in(root, "missing", &[]), &["run directory missing", "No such file"]);
    assert_eq!(names(root), ["begun", "empty", "here", "link", "mine", "missing", "notes", "target"]);
}

#[test]
fn a_killed_overwrite_leaves_the_old_run_or_the_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    succeed_in(root, "run", &[]);
    let mut last = seed_of(&root.join("run"));
    for attempt in 0..8 {
        let config = repository().join(CONFIG);
        let mut command = command();
        command.current_dir(root).args(["-q", "run"]).arg(config).args(["--run-dir", "run"]).args(TINY);
        command.args(["--overwrite", "--set", &format!("seed={attempt}")]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // The run starts after a fraction of a second, at a moment that depends on the machine.
        sleep(Duration::from_millis(60 * attempt));
        child.kill().unwrap();
        child.wait().unwrap();
        let now = seed_of(&root.join("run"));
        assert!(now == last || now == format!("seed = {attempt}"), "{now}");
        assert!(root.join("run/run.json").exists());
        last = now;
    }
    succeed_in(root, "run", &["--overwrite"]);
}

#[test]
fn runs_started_at_once_get_directories_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let config = repository().join(CONFIG);
    let start = || {
        let mut command = command();
        command.current_dir(folder.path()).arg("run").arg(&config).args(TINY).stdout(Stdio::piped());
        command.stderr(Stdio::piped()).spawn().unwrap()
    };
    for child in [start(), start(), start(), start()] {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
    }
    let runs = names(&folder.path().join("runs"));
    assert_eq!(runs.len(), 4, "{runs:?}");
    runs.iter().for_each(|run| assert!(folder.path().join("runs").join(run).join("results.json").exists()));
}

#[test]
fn links_in_a_run_directory_are_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let run = root.join("run");
    succeed_in(root, "run", &[]);
    fs::write(root.join("victim"), "mine").unwrap();
    fs::create_dir(root.join("victims")).unwrap();
    for (name, target) in [
        (".lock", "../victim"),
        ("log.txt", "../victim"),
        ("metrics.jsonl", "../victim"),
        ("results.json", "../victim"),
        ("checkpoints", "../victims"),
        ("models/task_1/student.safetensors", "../../../victim"),
    ] {
        let (path, aside) = (run.join(name), root.join("aside"));
        let existed = path.exists();
        if existed {
            fs::rename(&path, &aside).unwrap();
        }
        symlink(target, &path).unwrap();
        // One task remains, so that the run would be continued.
        let more = ["resume", run.to_str().unwrap(), "--set", "stream.max_tasks=2"];
        if name != "results.json" {
            let results = fs::read(run.join("results.json")).unwrap();
            fs::remove_file(run.join("results.json")).unwrap();
            assert_refused(&cdl(&more), &[&format!("contains the link `{name}`")]);
            fs::write(run.join("results.json"), results).unwrap();
        } else {
            assert_refused(&cdl(&more), &[]);
        }
        assert_eq!(fs::read_to_string(root.join("victim")).unwrap(), "mine", "{name}");
        assert_eq!(names(&root.join("victims")).len(), 0, "{name}");
        fs::remove_file(&path).unwrap();
        if existed {
            fs::rename(&aside, &path).unwrap();
        }
    }
}

#[test]
fn pipes_and_hard_links_are_neither_waited_for_nor_written_to() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    succeed_in(root, "run", &[]);
    let run = root.join("run");
    fs::write(root.join("victim"), "mine").unwrap();
    for name in [".lock", "log.txt", "metrics.jsonl"] {
        let results = fs::read(run.join("results.json")).unwrap();
        let original = fs::read(run.join(name)).unwrap();
        // An unfinished run, so that it would be resumed.
        fs::remove_file(run.join("results.json")).unwrap();
        for pipe in [true, false] {
            fs::remove_file(run.join(name)).unwrap();
            match pipe {
                true => assert!(Command::new("mkfifo").arg(run.join(name)).status().unwrap().success()),
                false => fs::hard_link(root.join("victim"), run.join(name)).unwrap(),
            }
            let output = cdl(&["resume", run.to_str().unwrap()]);
            assert!(!output.status.success());
            assert!(stderr(&output).contains("it is a link, pipe or device"), "{name}: {}", stderr(&output));
            assert_eq!(fs::read_to_string(root.join("victim")).unwrap(), "mine", "{name}");
        }
        fs::remove_file(run.join(name)).unwrap();
        fs::write(run.join(name), original).unwrap();
        fs::write(run.join("results.json"), results).unwrap();
    }
    // A folder of the user whose name only begins like a temporary one is kept.
    fs::create_dir(root.join(".cdl-notes")).unwrap();
    fs::write(root.join(".cdl-notes/.lock"), "").unwrap();
    succeed_in(root, "run", &["--overwrite"]);
    assert!(root.join(".cdl-notes").exists());
}

/// Changes one byte in the middle of a file.
fn flip(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() * 3 / 4;
    bytes[middle] ^= 1;
    fs::write(file, bytes).unwrap();
}

#[test]
fn damaged_models_and_metrics_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    succeed_in(root, "run", &[]);
    let run = root.join("run");
    let (dir, out) = (run.to_str().unwrap(), root.join("out"));
    let model = run.join("models/task_2/student.safetensors");
    flip(&model);
    let words = ["models/task_2/student.safetensors", "is damaged", "SHA-256", "expected"];
    assert_refused(&cdl(&["eval", dir]), &words);
    assert_refused(&cdl(&["export", dir, "--student", out.to_str().unwrap()]), &words);
    flip(&model);
    assert!(cdl(&["eval", dir]).status.success());

    // Kill a run after its first epochs, and change a line of metrics.jsonl but not its length.
    let mut child = command();
    child.args(["run", CONFIG, "--run-dir", root.join("stopped").to_str().unwrap()]).args(TINY);
    child.args(["--set", "epochs=40", "--set", "stream.train_per_class=40"]);
    let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let metrics = root.join("stopped/metrics.jsonl");
    let lines = || fs::read_to_string(&metrics).map_or(0, |text| text.lines().count());
    while lines() < 3 {
        assert!(child.try_wait().unwrap().is_none(), "the run is long enough");
        sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let text = fs::read_to_string(&metrics).unwrap();
    fs::write(&metrics, text.replacen("\"accuracy\":", "\"accuracx\":", 1)).unwrap();
    let stopped = root.join("stopped");
    let refused = cdl(&["resume", stopped.to_str().unwrap()]);
    assert_refused(&refused, &["metrics.jsonl was changed after the checkpoint was written", "expected"]);
}

#[test]
fn outside_names_do_not_control_the_terminal_or_a_spreadsheet() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    for (split, count) in [("train", 2), ("test", 1)] {
        for class in ["=1+1", "\u{1b}[2Jb", "c\nd"] {
            let class = data.join(split).join(class);
            fs::create_dir_all(&class).unwrap();
            for number in 0..count {
                let image =
                    image::RgbImage::from_fn(9, 7, |x, y| [x as u8, y as u8 * 20, number * 40].into());
                image.save(class.join(format!("{number}.png"))).unwrap();
            }
        }
    }
    let broken = data.join("train/c\nd/9.png");
    fs::write(&broken, "no image").unwrap();
    let path = format!("stream.path={:?}", data.display().to_string());
    let settings =
        [
            &[
                "--set",
                "stream.name=image_folder",
                "--set",
                &path,
                "--set",
                "stream.transform={image_size=28}",
            ][..],
            &["--set", "stream.tasks=1", "--set", "batch_size=2", "--set", "epochs=1"],
        ]
        .concat();
    let run = folder.path().join("run");
    let args = [&["run", CONFIG, "--run-dir", run.to_str().unwrap()], &settings[..]].concat();
    let refused = cdl(&args);
    assert_refused(&refused, &["c\\nd/9.png"]);
    fs::remove_file(broken).unwrap();
    let output = cdl(&[&args[..], &["-v"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let checked = cdl(&[&["check", CONFIG], &settings[..]].concat());
    for text in [&output.stdout, &output.stderr, &checked.stdout, &checked.stderr] {
        assert!(!text.contains(&0x1b), "{}", String::from_utf8_lossy(text));
    }
    let csv = fs::read_to_string(run.join("confusion_student.csv")).unwrap();
    assert!(csv.lines().any(|line| line.starts_with("'=1+1,")), "{csv}");
    assert!(cdl(&["report", run.to_str().unwrap()]).status.success());
}
