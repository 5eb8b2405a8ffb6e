//! Sweeps that are stopped, killed, shared among processes, or run as a job array. The tests do not depend on timing:
//! cells that must not finish are locked by the test or would take hours.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::common::{
    cdl, command, stderr, succeed,
    sweeps::{
        Started, json, lock_cell, of_any_cell, path, state, states, sweep, tables, text, wait_for_cells,
    },
};

/// Options of a sweep of four cells. The last cell is [`LAST`].
const GRID: [&str; 4] = ["--vary", "distiller.name=none,kd", "--seeds", "1,2"];
const LAST: &str = "distiller-kd--seed-2";
/// Options of a sweep whose cells would take hours.
const ENDLESS: [&str; 4] = ["--set", "epochs=100000", "--seeds", "1,2"];

#[test]
fn tables_of_killed_and_stopped_sweeps_equal_those_of_uninterrupted_ones() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let whole = folder.path().join("whole/grid");
    succeed(&sweep(&whole, &GRID));

    let killed = folder.path().join("killed/grid");
    let more = [&GRID[..], &["--jobs", "2"]].concat();
    let args = sweep(&killed, &more);
    for _ in 0..2 {
        let mut child = Started::of(&args);
        child.wait_for(|| of_any_cell(&killed, "metrics.jsonl"));
        assert_eq!(child.kill().status.signal(), Some(9));
    }
    let output = loop {
        // Cells of a killed sweep continue, and some may only start now.
        wait_for_cells(&killed);
        // Environment variables do not change a sweep that was started.
        let output = command().args(["resume", path(&killed)]).env("CDL_EPOCHS", "9").output().expect("cdl");
        if !stderr(&output).contains("another process is running it") {
            break output;
        }
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    };
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(tables(&killed), tables(&whole));

    let stopped = folder.path().join("stopped/grid");
    let args = sweep(&stopped, &more);
    let mut child = Started::of(&args);
    child.wait_for(|| of_any_cell(&stopped, "metrics.jsonl"));
    let output = child.stop();
    assert_eq!(output.status.code(), Some(143), "{}", stderr(&output));
    assert!(stderr(&output).contains("continue with: cdl resume"), "{}", stderr(&output));
    let left = states(&stopped);
    assert_ne!(left[3], (LAST.into(), "done".into()), "{left:?}");
    assert!(left[..3].iter().all(|(_, state)| state != "running" && state != "failed"), "{left:?}");
    succeed(&args);
    assert_eq!(tables(&stopped), tables(&whole));
}

#[test]
fn running_cells_are_saved_when_the_sweep_is_stopped() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().join("grid");
    let mut child = Started::of(&endless_sweep(&dir));
    child.wait_for(|| of_any_cell(&dir, "metrics.jsonl"));
    let output = child.stop();
    assert_eq!(output.status.code(), Some(143), "{}", stderr(&output));
    assert_eq!(states(&dir), [("seed-1".into(), "stopped".into()), ("seed-2".into(), "waiting".into())]);
    assert!(text(&dir.join("logs/seed-1.txt")).contains("stopped by SIGTERM and saved"));
    assert!(fs::read_dir(dir.join("cells/seed-1/checkpoints")).expect("folder").count() > 0);
    // A stopped cell has not failed.
    succeed(&["sweep", "--resume", path(&dir), "--collect"]);
    assert_eq!(state(&dir, "seed-1").0, "stopped");
}

/// Arguments of a sweep that ends only when it is stopped.
fn endless_sweep(dir: &Path) -> Vec<&str> {
    sweep(dir, &ENDLESS)
}

#[test]
fn a_cell_of_another_process_is_skipped() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let whole = folder.path().join("whole/grid");
    succeed(&sweep(&whole, &GRID));
    let dir = folder.path().join("shared/grid");
    let args = sweep(&dir, &GRID);
    succeed(&[&args[..], &["--emit", "slurm"]].concat());

    let first = "distiller-none--seed-1";
    let other = lock_cell(&dir, first);
    let cell = ["sweep", "--resume", path(&dir), "--cell"];
    for which in ["0", first] {
        let output = cdl(&[&cell[..], &[which]].concat());
        assert_eq!(output.status.code(), Some(75), "{}", stderr(&output));
        assert!(
            stderr(&output).contains(&format!("{first} is run by process 1; nothing")),
            "{}",
            stderr(&output)
        );
    }
    let output = cdl(&args);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    for expected in [
        "the other cells continue",
        "1 of 4 cells is not done",
        &format!("{first}: another process is running it"),
    ] {
        assert!(stderr(&output).contains(expected), "{expected} in {}", stderr(&output));
    }
    let found: Vec<String> = states(&dir).into_iter().map(|(_, state)| state).collect();
    assert_eq!(found, ["running", "done", "done", "done"]);
    assert_eq!(json(&dir.join("summary.json"))["combinations"][0]["student"]["forgetting"]["n"], 1);
    assert!(!dir.join("cells").join(first).exists());

    // A second sweep in the same folder is refused.
    let sweeping = fs::File::open(dir.join(".lock")).expect("lock");
    sweeping.lock().expect("locked");
    let output = cdl(&["resume", path(&dir)]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("is writing to it"), "{}", stderr(&output));
    drop((sweeping, other));
    succeed(&["resume", path(&dir)]);
    assert_eq!(tables(&dir), tables(&whole));
}

#[test]
fn a_cell_that_cannot_be_locked_is_retried_once() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().join("grid");
    let args = sweep(&dir, &["--seeds", "1,2"]);
    succeed(&[&args[..], &["--emit", "slurm"]].concat());
    drop(lock_cell(&dir, "seed-1"));
    // With a shared lock the cell looks free but cannot be locked.
    let reader = fs::File::open(dir.join("logs/seed-1.lock")).expect("lock");
    reader.lock_shared().expect("locked");
    let output = cdl(&args);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("seed-1: another process is running it\n"), "{}", stderr(&output));
    assert_eq!(
        stderr(&output).matches("seed-1: another process is running it; the other cells continue").count(),
        2
    );
    assert_eq!(states(&dir), [("seed-1".into(), "running".into()), ("seed-2".into(), "done".into())]);
    drop(reader);
    succeed(&args);
    assert_eq!(state(&dir, "seed-1").0, "done");
}

/// Command that runs the script as one job of the array, with the `scontrol` of [`queue`].
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

fn executable(file: &Path, script: &str) {
    fs::write(file, format!("#!/bin/bash\n{script}\n")).expect("written");
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).expect("executable");
}

/// Writes a `scontrol` that records its arguments in a file. Returns its folder and that file.
fn queue(folder: &Path) -> (PathBuf, PathBuf) {
    let (bin, called) = (folder.join("bin"), folder.join("requeued"));
    fs::create_dir(&bin).expect("folder");
    executable(&bin.join("scontrol"), &format!("echo \"$@\" > '{}'", called.display()));
    (bin, called)
}

#[test]
fn a_job_array_runs_the_same_cells() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let local = folder.path().join("local/grid");
    succeed(&sweep(&local, &GRID));
    // A path that must be quoted in the script.
    let dir = folder.path().join("it's a cluster/grid");
    let output = succeed(&sweep(&dir, &[&GRID[..], &["--emit", "slurm"]].concat()));
    let usage = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(usage.contains("sbatch \"") && usage.contains("--collect"), "{usage}");
    let script = dir.join("sweep.slurm");
    let lines = text(&script);
    for line in ["#SBATCH --array=0-3", "#SBATCH --signal=B:TERM@", "#SBATCH --requeue"] {
        assert!(lines.contains(line), "{line} in {lines}");
    }
    assert!(!dir.join("cells").exists(), "nothing was run");
    // Queued jobs keep their cells when the sweep is extended and numbers change.
    succeed(&sweep(
        &dir,
        &["--vary", "distiller.name=none,kd", "--seeds", "3,1,2"]
            .into_iter()
            .chain(["--emit", "slurm"])
            .collect::<Vec<_>>(),
    ));
    fs::write(&script, lines).expect("written");
    let (bin, called) = queue(folder.path());
    for index in 0..4 {
        let output = job(&script, index, &bin).output().expect("bash");
        assert!(output.status.success(), "{index}: {}", stderr(&output));
    }
    assert!(!called.exists(), "finished cells are not requeued");
    let output = job(&script, 4, &bin).output().expect("bash");
    assert!(!output.status.success() && stderr(&output).contains("the cells 0 to 3"), "{}", stderr(&output));
    for name in states(&local).iter().map(|(name, _)| name) {
        assert!(dir.join("cells").join(name).join("results.json").exists(), "{name}");
    }
    for name in ["distiller-none--seed-3", "distiller-kd--seed-3"] {
        succeed(&["sweep", "--resume", path(&dir), "--cell", name]);
    }
    succeed(&["sweep", "--resume", path(&dir), "--collect"]);
    assert!(states(&dir).iter().all(|(_, state)| state == "done"));
    let grown = folder.path().join("grown/grid");
    succeed(&sweep(&grown, &["--vary", "distiller.name=none,kd", "--seeds", "3,1,2", "--jobs", "2"]));
    assert_eq!(tables(&dir), tables(&grown));
}

#[test]
fn a_sweep_larger_than_an_array_takes_several() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().join("grid");
    let more = [&GRID[..], &["--emit", "slurm", "--array-limit", "3"]].concat();
    let output = succeed(&sweep(&dir, &more));
    let script = dir.join("sweep.slurm");
    let usage = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(usage.contains(&format!("start:   sbatch {}\n", path(&script))), "{usage}");
    assert!(usage.contains(&format!(" sbatch --array=0-0 {} 3\n", path(&script))), "{usage}");
    assert!(text(&script).contains("#SBATCH --array=0-2\n"));
    let (bin, _) = queue(folder.path());
    let run = |index: usize, first: &[&str]| {
        let output = job(&script, index, &bin).args(first).output().expect("bash");
        assert!(output.status.success(), "{index}: {}", stderr(&output));
    };
    for index in 0..3 {
        run(index, &[]);
    }
    assert!(!dir.join("cells").join(LAST).exists());
    run(0, &["3"]);
    assert!(dir.join("cells").join(LAST).join("results.json").exists());

    // Slurm's default limit. Resuming emits the script of all cells again.
    let whole: Vec<String> = (0..1200).map(|seed| seed.to_string()).collect();
    let (dir, seeds) = (folder.path().join("many"), whole.join(","));
    succeed(&sweep(&dir, &["--seeds", &seeds, "--emit", "slurm"]));
    assert!(text(&dir.join("sweep.slurm")).contains("#SBATCH --array=0-1000\n"));
    let emit = ["sweep", "--resume", path(&dir), "--emit", "slurm", "--array-limit"];
    let usage = succeed(&[&emit[..], &["10000"]].concat()).stdout;
    assert!(text(&dir.join("sweep.slurm")).contains("#SBATCH --array=0-1199\n"));
    assert_eq!(String::from_utf8_lossy(&usage).matches("sbatch").count(), 1);
    for none in ["0", "many"] {
        assert_eq!(cdl(&[&emit[..], &[none]].concat()).status.code(), Some(2));
    }
}

#[test]
fn a_job_is_requeued_only_if_its_cell_is_not_finished() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().join("grid");
    succeed(&[&endless_sweep(&dir)[..], &["--emit", "slurm"]].concat());
    let script = dir.join("sweep.slurm");
    let (bin, called) = queue(folder.path());
    let mut child = Started::new(&mut job(&script, 0, &bin));
    child.wait_for(|| of_any_cell(&dir, "metrics.jsonl"));
    let output = child.stop();
    assert_eq!(output.status.code(), Some(143), "{}", stderr(&output));
    assert!(stderr(&output).contains("stopped by SIGTERM and saved"), "{}", stderr(&output));
    assert_eq!(text(&called).trim(), "requeue 7_0");
    succeed(&["sweep", "--resume", path(&dir), "--collect"]);
    assert_eq!(state(&dir, "seed-1").0, "stopped");

    // A replacement of the program that ends with a given code when it is stopped.
    let (program, ready) = (folder.path().join("program"), folder.path().join("ready"));
    let lines = text(&script).replace(env!("CARGO_BIN_EXE_cdl"), path(&program));
    assert!(lines.contains(path(&program)));
    fs::write(&script, lines).expect("written");
    for (code, queued) in [(0, false), (1, false), (130, false), (143, true)] {
        for file in [&called, &ready] {
            let _ = fs::remove_file(file);
        }
        let wait = format!("sleep infinity & sleeping=$!\necho up > '{}'\nwait", ready.display());
        executable(&program, &format!("trap 'kill $sleeping; exit {code}' TERM\n{wait}"));
        // This `kill` returns after the program has ended, so that the script finds it ended.
        let kill = "() { builtin kill \"$@\"; local code=$?; while builtin kill -0 \"$cell\" 2>/dev/null; do :; done; \
                    return $code; }";
        let mut child = Started::new(job(&script, 0, &bin).env("BASH_FUNC_kill%%", kill));
        child.wait_for(|| Some(ready.clone()));
        assert_eq!(child.stop().status.code(), Some(code));
        assert_eq!(called.exists(), queued, "{code}");
    }

    // A killed program cannot record its failure; the job does.
    executable(&program, "kill -KILL $$");
    assert_eq!(job(&script, 1, &bin).output().expect("bash").status.code(), Some(137));
    succeed(&["sweep", "--resume", path(&dir), "--collect"]);
    assert_eq!(state(&dir, "seed-2"), ("failed".into(), "its process was ended by signal 9".into()));
}

#[test]
fn a_job_without_checkpoints_is_not_requeued() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().join("grid");
    let both = ["--vary", "checkpoint.off=true,false", "--emit", "slurm"];
    succeed(&[&endless_sweep(&dir)[..], &both].concat());
    let script = dir.join("sweep.slurm");
    let (bin, called) = queue(folder.path());
    for (cell, queued) in [(0, false), (2, true)] {
        let mut child = Started::new(&mut job(&script, cell, &bin));
        child.wait_for(|| of_any_cell(&dir, "metrics.jsonl"));
        let output = child.stop();
        assert_eq!(output.status.code(), Some(143), "{}", stderr(&output));
        assert_eq!(stderr(&output).contains("not saved"), !queued, "{}", stderr(&output));
        assert_eq!(called.exists(), queued, "{cell}");
        fs::remove_dir_all(dir.join("cells")).expect("removed");
    }
}

#[test]
fn a_cell_that_fails_in_a_job_is_collected_with_its_error() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().join("grid");
    succeed(&sweep(&dir, &["--vary", "optimizer.lr=1e30,5e-3", "--emit", "slurm"]));
    let (diverges, cell) = ("optimizer.lr-1e30", ["sweep", "--resume", path(&dir), "--cell"]);
    let run = |which: &str| cdl(&[&cell[..], &[which]].concat());
    assert_eq!(run("0").status.code(), Some(1));
    // A cell that could not start has failed, too.
    let occupied = dir.join("cells/optimizer.lr-5e-3");
    fs::create_dir_all(&occupied).expect("folder");
    fs::write(occupied.join("notes.txt"), "mine").expect("written");
    assert_eq!(run("1").status.code(), Some(2));
    let output = succeed(&["sweep", "--resume", path(&dir), "--collect"]);
    for (name, expected) in [(diverges, "became"), ("optimizer.lr-5e-3", "already exists")] {
        let (word, reason) = state(&dir, name);
        assert_eq!(word, "failed", "{name}");
        assert!(reason.contains(expected) && stderr(&output).contains(&reason), "{name}: {reason}");
    }
    // A success clears the failure.
    fs::remove_file(occupied.join("notes.txt")).expect("removed");
    assert!(run("1").status.success());
    succeed(&["sweep", "--resume", path(&dir), "--collect"]);
    assert_eq!(state(&dir, "optimizer.lr-5e-3"), ("done".into(), String::new()));
    assert!(text(&dir.join("sweep.html")).contains("failed<small>"));
}
