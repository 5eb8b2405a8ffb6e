//! Inputs and situations in which the program once did the wrong thing, each as a script that a user could run.
//!
//! A folder `tests/cases/NAME` has the script `cmd.sh`, its inputs, and `expected.txt` with a line for each condition on
//! what the script prints: `has: TEXT`, `lacks: TEXT`, and `needs: PROGRAM` for a program without which it is skipped.
#![cfg(target_os = "linux")]

use std::{fs, path::Path, process::Command, sync::Mutex, thread};

use crate::common::repository;

/// Checks the output of one case. Returns the conditions that do not hold.
fn check(case: &Path) -> Vec<String> {
    let name = case.file_name().unwrap().to_string_lossy().into_owned();
    let expected = fs::read_to_string(case.join("expected.txt")).expect(&name);
    let lines = |key: &str| -> Vec<&str> {
        expected.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix(": ")).collect()
    };
    let known = |line: &str| ["has: ", "lacks: ", "needs: "].iter().any(|key| line.starts_with(key));
    assert!(expected.lines().all(known) && !lines("has").is_empty(), "{name}: {expected}");
    let found = |program: &&str| Command::new("sh").args(["-c", &format!("command -v {program}")]).output();
    if lines("needs").iter().any(|program| !found(program).expect("sh").status.success()) {
        eprintln!("skipped: {name} needs {}", lines("needs").join(", "));
        return Vec::new();
    }
    let output = Command::new("bash")
        .arg(case.join("cmd.sh"))
        .env("CDL", env!("CARGO_BIN_EXE_cdl"))
        .env("Q", repository().canonicalize().unwrap().join("configs/quickstart.toml"))
        .env_remove("HF_ENDPOINT")
        .env_remove("HF_HOME")
        .output()
        .expect("bash starts");
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let has =
        lines("has").into_iter().filter(|words| !text.contains(words)).map(|words| format!("lacks {words}"));
    let lacks =
        lines("lacks").into_iter().filter(|words| text.contains(words)).map(|words| format!("has {words}"));
    has.chain(lacks).map(|problem| format!("{name} {problem}\n{text}")).collect()
}

#[test]
fn every_case_gives_the_right_output() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut cases: Vec<_> = entries.filter(|path| path.is_dir()).collect();
    cases.sort();
    let (cases, problems) = (Mutex::new(cases), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some(case) = cases.lock().unwrap().pop() else { return };
                    let found = check(&case);
                    problems.lock().unwrap().extend(found);
                }
            });
        }
    });
    let problems = problems.into_inner().unwrap();
    assert!(problems.is_empty(), "{}", problems.join("\n\n"));
}
