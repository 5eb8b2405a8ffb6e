//! Sweeps that are stopped, killed, shared out among processes, or run as a job array. No test hopes for a moment: a cell
//! that must not be finished yet is one that the test holds, or one that would take hours.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::common::{
    cdl, command, done, said,
    sweeps::{Started, hold, json, of_any_cell, path, state, states, sweep, tables, text, wait_for_cells},
};

/// Four cells; the last of them is `LAST`.
const GRID: [&str; 4] = ["--vary", "distiller.name=none,kd", "--seeds", "1,2"];
const LAST: &str = "distiller-kd--seed-2";
/// Cells that nobody waits for.
const ENDLESS: [&str; 4] = ["--set", "epochs=100000", "--seeds", "1,2"];

#[test]
fn a_sweep_that_is_killed_or_stopped_ends_with_the_tables_of_one_that_was_not() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let whole = folder.path().join("whole/grid");
    done(&sweep(&whole, &GRID));

    let killed = folder.path().join("killed/grid");
    let more = [&GRID[..], &["--jobs", "2"]].concat();
    let args = sweep(&killed, &more);
    for _ in 0..2 {
        let mut child = Started::of(&args);
        child.wait_for(|| of_any_cell(&killed, "metrics.jsonl"));
        assert_eq!(child.kill().status.signal(), Some(9));
    }
    let output = loop {
        // Cells of a killed sweep run to their end, and some may only now begin.
        wait_for_cells(&killed);
        // What the environment says now is no part of a sweep that was begun.
        let output = command().args(["resume", path(&killed)]).env("CDL_EPOCHS", "9").output().expect("cdl");
        if !said(&output).contains("another process is at it") {
            break output;
        }
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    };
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(tables(&killed), tables(&whole));

    let stopped = folder.path().join("stopped/grid");
    let args = sweep(&stopped, &more);
    let mut child = Started::of(&args);
    child.wait_for(|| of_any_cell(&stopped, "metrics.jsonl"));
    let output = child.stop();
    assert_eq!(output.status.code(), Some(143), "{}", said(&output));
    assert!(said(&output).contains("go on with: cdl resume"), "{}", said(&output));
    let left = states(&stopped);
    assert_ne!(left[3], (LAST.into(), "done".into()), "{left:?}");
    assert!(left[..3].iter().all(|(_, state)| state != "running" && state != "failed"), "{left:?}");
    done(&args);
    assert_eq!(tables(&stopped), tables(&whole));
}

#[test]
fn cells_at_work_save_themselves_when_the_sweep_is_stopped() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().join("grid");
    let mut child = Started::of(&sweep_of_hours(&dir));
    child.wait_for(|| of_any_cell(&dir, "metrics.jsonl"));
    let output = child.stop();
    assert_eq!(output.status.code(), Some(143), "{}", said(&output));
    assert_eq!(states(&dir), [("seed-1".into(), "stopped".into()), ("seed-2".into(), "waiting".into())]);
    assert!(text(&dir.join("logs/seed-1.txt")).contains("stopped by SIGTERM and saved"));
    assert!(fs::read_dir(dir.join("cells/seed-1/checkpoints")).expect("folder").count() > 0);
    // A stop is no failure.
    done(&["sweep", "--resume", path(&dir), "--collect"]);
    assert_eq!(state(&dir, "seed-1").0, "stopped");
}

/// Of the quickstart, so long that it ends only by being told to.
fn sweep_of_hours(dir: &Path) -> Vec<&str> {
    sweep(dir, &ENDLESS)
}

#[test]
fn a_cell_of_another_process_is_left_to_it_and_the_others_go_on() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let whole = folder.path().join("whole/grid");
    done(&sweep(&whole, &GRID));
    let dir = folder.path().join("shared/grid");
    let args = sweep(&dir, &GRID);
    done(&[&args[..], &["--emit", "slurm"]].concat());

    let first = "distiller-none--seed-1";
    let other = hold(&dir, first);
    let cell = ["sweep", "--resume", path(&dir), "--cell"];
    for which in ["0", first] {
        let output = cdl(&[&cell[..], &[which]].concat());
        assert_eq!(output.status.code(), Some(75), "{}", said(&output));
        assert!(
            said(&output).contains(&format!("{first} is run by process 1; nothing")),
            "{}",
            said(&output)
        );
    }
    let output = cdl(&args);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    for expected in
        ["the others go on", "1 of 4 cells are not done", &format!("{first}: another process is at it")]
    {
        assert!(said(&output).contains(expected), "{expected} in {}", said(&output));
    }
    let found: Vec<String> = states(&dir).into_iter().map(|(_, state)| state).collect();
    assert_eq!(found, ["running", "done", "done", "done"]);
    assert_eq!(json(&dir.join("summary.json"))["combinations"][0]["student"]["forgetting"]["n"], 1);
    assert!(!dir.join("cells").join(first).exists());

    // Two sweeps in one folder: the second says who has it.
    let sweeping = fs::File::open(dir.join(".lock")).expect("lock");
    sweeping.lock().expect("locked");
    let output = cdl(&["resume", path(&dir)]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("is writing to it"), "{}", said(&output));
    drop((sweeping, other));
    done(&["resume", path(&dir)]);
    assert_eq!(tables(&dir), tables(&whole));
}

#[test]
fn a_cell_that_looks_free_and_cannot_be_taken_is_tried_once_more() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().join("grid");
    let args = sweep(&dir, &["--seeds", "1,2"]);
    done(&[&args[..], &["--emit", "slurm"]].concat());
    drop(hold(&dir, "seed-1"));
    // Shared, as by one who only looks: no other who looks sees it, and no process takes the cell.
    let looker = fs::File::open(dir.join("logs/seed-1.lock")).expect("lock");
    looker.lock_shared().expect("locked");
    let output = cdl(&args);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("seed-1: another process is at it\n"), "{}", said(&output));
    assert_eq!(said(&output).matches("seed-1: another process is at it; the others go on").count(), 2);
    assert_eq!(states(&dir), [("seed-1".into(), "running".into()), ("seed-2".into(), "done".into())]);
    drop(looker);
    done(&args);
    assert_eq!(state(&dir, "seed-1").0, "done");
}

/// Runs the script as one job of the array, with a `scontrol` that only says what it was called with.
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

/// A folder with a `scontrol` that writes what it is called with into the file beside it.
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
    done(&sweep(&local, &GRID));
    // A place that a careless script would take for several words.
    let dir = folder.path().join("it's a cluster/grid");
    let output = done(&sweep(&dir, &[&GRID[..], &["--emit", "slurm"]].concat()));
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(told.contains("sbatch \"") && told.contains("--collect"), "{told}");
    let script = dir.join("sweep.slurm");
    let lines = text(&script);
    for line in ["#SBATCH --array=0-3", "#SBATCH --signal=B:TERM@", "#SBATCH --requeue"] {
        assert!(lines.contains(line), "{line} in {lines}");
    }
    assert!(!dir.join("cells").exists(), "nothing was run");
    // Jobs in the queue keep their cells when the sweep grows and numbers move.
    done(&sweep(
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
        assert!(output.status.success(), "{index}: {}", said(&output));
    }
    assert!(!called.exists(), "what is done is not queued again");
    let output = job(&script, 4, &bin).output().expect("bash");
    assert!(!output.status.success() && said(&output).contains("the cells 0 to 3"), "{}", said(&output));
    for name in states(&local).iter().map(|(name, _)| name) {
        assert!(dir.join("cells").join(name).join("results.json").exists(), "{name}");
    }
    for name in ["distiller-none--seed-3", "distiller-kd--seed-3"] {
        done(&["sweep", "--resume", path(&dir), "--cell", name]);
    }
    done(&["sweep", "--resume", path(&dir), "--collect"]);
    assert!(states(&dir).iter().all(|(_, state)| state == "done"));
    let grown = folder.path().join("grown/grid");
    done(&sweep(&grown, &["--vary", "distiller.name=none,kd", "--seeds", "3,1,2", "--jobs", "2"]));
    assert_eq!(tables(&dir), tables(&grown));
}

#[test]
fn a_job_is_queued_again_if_its_cell_is_not_finished_and_only_then() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().join("grid");
    done(&[&sweep_of_hours(&dir)[..], &["--emit", "slurm"]].concat());
    let script = dir.join("sweep.slurm");
    let (bin, called) = queue(folder.path());
    let mut child = Started::new(&mut job(&script, 0, &bin));
    child.wait_for(|| of_any_cell(&dir, "metrics.jsonl"));
    let output = child.stop();
    assert_eq!(output.status.code(), Some(143), "{}", said(&output));
    assert!(said(&output).contains("stopped by SIGTERM and saved"), "{}", said(&output));
    assert_eq!(text(&called).trim(), "requeue 7_0");
    done(&["sweep", "--resume", path(&dir), "--collect"]);
    assert_eq!(state(&dir, "seed-1").0, "stopped");

    // In the program's place, one that ends as it is to when it is told to stop.
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
        // It has ended before the script can look at it again: a `kill` that waits for that.
        let kill = "() { builtin kill \"$@\"; local code=$?; while builtin kill -0 \"$cell\" 2>/dev/null; do :; done; \
                    return $code; }";
        let mut child = Started::new(job(&script, 0, &bin).env("BASH_FUNC_kill%%", kill));
        child.wait_for(|| Some(ready.clone()));
        assert_eq!(child.stop().status.code(), Some(code));
        assert_eq!(called.exists(), queued, "{code}");
    }

    // One that is killed has said nothing; the job says it.
    executable(&program, "kill -KILL $$");
    assert_eq!(job(&script, 1, &bin).output().expect("bash").status.code(), Some(137));
    done(&["sweep", "--resume", path(&dir), "--collect"]);
    assert_eq!(state(&dir, "seed-2"), ("failed".into(), "its process was ended by signal 9".into()));
}

#[test]
fn a_job_whose_cell_is_not_saved_is_not_queued_again() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().join("grid");
    let both = ["--vary", "checkpoint.off=true,false", "--emit", "slurm"];
    done(&[&sweep_of_hours(&dir)[..], &both].concat());
    let script = dir.join("sweep.slurm");
    let (bin, called) = queue(folder.path());
    for (cell, queued) in [(0, false), (2, true)] {
        let mut child = Started::new(&mut job(&script, cell, &bin));
        child.wait_for(|| of_any_cell(&dir, "metrics.jsonl"));
        let output = child.stop();
        assert_eq!(output.status.code(), Some(143), "{}", said(&output));
        assert_eq!(said(&output).contains("not saved"), !queued, "{}", said(&output));
        assert_eq!(called.exists(), queued, "{cell}");
        fs::remove_dir_all(dir.join("cells")).expect("removed");
    }
}

#[test]
fn a_cell_that_fails_in_a_job_is_collected_as_failed_with_what_it_said() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().join("grid");
    done(&sweep(&dir, &["--vary", "optimizer.lr=1e30,5e-3", "--emit", "slurm"]));
    let (diverges, cell) = ("optimizer.lr-1e30", ["sweep", "--resume", path(&dir), "--cell"]);
    let run = |which: &str| cdl(&[&cell[..], &[which]].concat());
    assert_eq!(run("0").status.code(), Some(1));
    // Nor is a run that could not even begin taken for one that waits.
    let occupied = dir.join("cells/optimizer.lr-5e-3");
    fs::create_dir_all(&occupied).expect("folder");
    fs::write(occupied.join("notes.txt"), "mine").expect("written");
    assert_eq!(run("1").status.code(), Some(2));
    let output = done(&["sweep", "--resume", path(&dir), "--collect"]);
    for (name, expected) in [(diverges, "became"), ("optimizer.lr-5e-3", "already exists")] {
        let (word, reason) = state(&dir, name);
        assert_eq!(word, "failed", "{name}");
        assert!(reason.contains(expected) && said(&output).contains(&reason), "{name}: {reason}");
    }
    // Mended, it is forgotten.
    fs::remove_file(occupied.join("notes.txt")).expect("removed");
    assert!(run("1").status.success());
    done(&["sweep", "--resume", path(&dir), "--collect"]);
    assert_eq!(state(&dir, "optimizer.lr-5e-3"), ("done".into(), String::new()));
    assert!(text(&dir.join("sweep.html")).contains("failed<small>"));
}
