//! `cdl bench` as its user runs it. Times are not tested, what is counted is.

use std::process::Command;

use crate::common::{cdl, repository, said};
use serde_json::Value;

const TINY: [&str; 10] =
    ["bench", "--teacher", "tiny", "--student", "tiny", "--batch", "1", "--steps", "1", "--json"];

fn measured(more: &[&str]) -> Value {
    let output = cdl(&[&TINY, more].concat());
    assert!(output.status.success(), "{}", said(&output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn what_is_computed_twice_counts_once() {
    let kept = measured(&[]);
    let again =
        measured(&["--set", "teacher.checkpoint_blocks=true", "--set", "student.checkpoint_blocks=true"]);
    for key in ["teacher_gflop", "student_gflop"] {
        assert!(kept[key].as_f64().expect("a number") > 1.0, "{kept}");
        assert_eq!(kept[key], again[key], "{key}");
    }
}

/// Said, or as many as there are; the program begins anew to have them so.
#[test]
fn as_many_threads_compute_as_are_said() {
    let all = std::thread::available_parallelism().expect("a number").to_string();
    for (more, threads) in [(&[][..], all.as_str()), (&["--threads", "1"], "1"), (&["--threads", "3"], "3")] {
        assert_eq!(
            measured(&[more, &["--device", "cpu"]].concat())["device"],
            format!("cpu, {threads} threads")
        );
    }
}

#[test]
fn an_unknown_set_of_instructions_is_told_once() {
    let with = |level: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cdl"));
        command.args(TINY).current_dir(repository()).env("CDL_SIMD", level).output().expect("cdl starts")
    };
    let output = with("avx1024");
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    assert_eq!(said.matches("CDL_SIMD=avx1024").count(), 1, "{said}");
    assert!(said.contains("portable"), "the known ones are named: {said}");
    let output = with("portable");
    assert!(!crate::common::said(&output).contains("CDL_SIMD"));
    let line: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(line["mode"], "portable");
}
