//! `cdl bench`: counts of operations and threads. Times are not tested.

use std::process::Command;

use crate::common::{cdl, repository, stderr};
use serde_json::Value;

const TINY: [&str; 10] =
    ["bench", "--teacher", "tiny", "--student", "tiny", "--batch", "1", "--steps", "1", "--json"];

fn measured(more: &[&str]) -> Value {
    let output = cdl(&[&TINY, more].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn recomputed_operations_count_once() {
    let kept = measured(&[]);
    let again =
        measured(&["--set", "teacher.checkpoint_blocks=true", "--set", "student.checkpoint_blocks=true"]);
    for key in ["teacher_gflop", "student_gflop"] {
        assert!(kept[key].as_f64().expect("a number") > 1.0, "{kept}");
        assert_eq!(kept[key], again[key], "{key}");
    }
}

/// The spans of the operations are in `cdl-kernels`, whose messages the profile must not filter out.
#[test]
fn a_step_is_divided_into_operations() {
    let output = cdl(&TINY[..TINY.len() - 1]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = String::from_utf8_lossy(&output.stdout);
    for operation in ["attention", "projection and mlp", "qkv"] {
        assert!(text.to_lowercase().contains(operation), "{operation} is missing in {text}");
    }
}

#[test]
fn threads_defaults_to_all_cores() {
    let all = std::thread::available_parallelism().expect("a number").to_string();
    for (more, threads) in [(&[][..], all.as_str()), (&["--threads", "1"], "1"), (&["--threads", "3"], "3")] {
        let threads = format!("{threads} thread{}", if threads == "1" { "" } else { "s" });
        assert_eq!(measured(&[more, &["--device", "cpu"]].concat())["device"], format!("cpu, {threads}"));
    }
}

#[test]
fn an_unknown_simd_level_is_one_warning() {
    let with = |level: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cdl"));
        command.args(TINY).current_dir(repository()).env("CDL_SIMD", level).output().expect("cdl starts")
    };
    let output = with("avx1024");
    let stderr = stderr(&output);
    assert!(output.status.success(), "{stderr}");
    assert_eq!(stderr.matches("CDL_SIMD=avx1024").count(), 1, "{stderr}");
    assert!(stderr.contains("portable"), "known levels are listed: {stderr}");
    let output = with("portable");
    assert!(!crate::common::stderr(&output).contains("CDL_SIMD"));
    let line: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(line["mode"], "portable");
}
