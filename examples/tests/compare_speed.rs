//! The comparison of speeds as its user runs it, with programs whose times are known.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::process::{Command, Output};

fn compare(ours: &str, peers: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_compare_speed"));
    command.args(["--rounds", "2", "--ours", ours]);
    for peer in peers {
        command.args(["--peer", peer]);
    }
    command.output().expect("the program starts")
}

fn says(name: &str, teacher: f64, student: f64, bytes: u64) -> String {
    format!(
        r#"echo '{{"peer": "{name}", "teacher_step_s": {teacher}, "student_step_s": {student}, "peak_bytes": {bytes}}}'"#
    )
}

#[test]
fn ratios_are_the_peers_time_by_ours_and_our_memory_by_the_peers() {
    let other = says("other", 3.0, 1.0, 4_000_000);
    let output = compare(&says("ours", 2.0, 0.5, 1_000_000), &[&other, &says("third", 2.0, 0.5, 1_000_000)]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(words.iter().any(|line| line == &["other", "3.000", "1.000", "4.000", "4"]), "{text}");
    assert!(words.iter().any(|line| line.ends_with(&["1.50x", "2.00x", "1.60x", "25", "%"])), "{text}");
    assert!(words.iter().any(|line| line.ends_with(&["1.00x", "1.00x", "1.00x", "100", "%"])), "{text}");
}

#[test]
fn commands_that_fail_or_print_something_else_are_named() {
    let ours = says("ours", 1.0, 1.0, 1);
    for (peer, expected) in
        [("exit 3", "`exit 3` failed"), ("echo hello", "no line of JSON"), ("echo '{}'", "`teacher_step_s`")]
    {
        let output = compare(&ours, &[peer]);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && errors.contains(expected), "{peer}: {errors}");
    }
}
