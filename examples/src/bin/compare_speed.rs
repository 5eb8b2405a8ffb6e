//! Times `cdl bench` and a peer in turns, so that both see the same machine, and prints what one takes of the other.
//!
//! ```sh
//! cargo run --release -p cdl-examples --bin compare_speed -- --rounds 3 \
//!     --ours "target/release/cdl bench --teacher base --student small --batch 8 --json" \
//!     --peer "python peer.py --teacher base --student small --batch 8"
//! ```
//!
//! A peer prints one line of JSON for each way in which it computes, with the keys `teacher_step_s`, `student_step_s` and
//! `peak_bytes` and whatever names it (`peer`, `mode`, `precision`). Memory is a process's: where that matters, give the
//! ways of the peer as commands of their own (`--peer` may be repeated).

use std::{collections::BTreeMap, process::Command};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde_json::Value;

/// Time `cdl bench` and a peer in turns.
#[derive(Parser)]
struct Args {
    /// Command that prints our line of JSON.
    #[arg(long, value_name = "COMMAND")]
    ours: String,
    /// Command that prints the peer's lines; may be repeated.
    #[arg(long, value_name = "COMMAND", required = true)]
    peer: Vec<String>,
    /// How often all take their turn.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

/// One measurement: seconds of a teacher's and a student's step, and bytes.
#[derive(Clone, Copy)]
struct Turn {
    teacher: f64,
    student: f64,
    bytes: f64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let mut ours = Vec::new();
    let mut peers: BTreeMap<String, Vec<Turn>> = BTreeMap::new();
    for _ in 0..args.rounds {
        for (_, turn) in measure(&args.ours)? {
            ours.push(turn);
        }
        for command in &args.peer {
            for (name, turn) in measure(command)? {
                peers.entry(name).or_default().push(turn);
            }
        }
    }
    println!("{:<42} {:>10} {:>10} {:>10} {:>10}", "medians", "teacher s", "student s", "both s", "MB");
    let ours = line("ours", &ours);
    for (name, turns) in &peers {
        let peer = line(name, turns);
        println!(
            "{:<42} {:>9.2}x {:>9.2}x {:>9.2}x {:>8.0} %",
            "  ours is faster by, and takes of its memory",
            peer.teacher / ours.teacher,
            peer.student / ours.student,
            (peer.teacher + peer.student) / (ours.teacher + ours.student),
            100.0 * ours.bytes / peer.bytes,
        );
    }
    Ok(())
}

/// Runs a command through the shell and reads its lines of JSON.
fn measure(command: &str) -> Result<Vec<(String, Turn)>> {
    let output = Command::new("sh").args(["-c", command]).output().context("cannot start sh")?;
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "`{command}` failed:\n{errors}");
    let mut turns = Vec::new();
    for line in text.lines().filter(|line| line.starts_with('{')) {
        eprintln!("{line}");
        let values: Value =
            serde_json::from_str(line).with_context(|| format!("`{command}` printed {line}"))?;
        let number = |key: &str| {
            values[key].as_f64().with_context(|| format!("`{command}`: expected a number `{key}` in {line}"))
        };
        let names = ["peer", "mode", "precision"].map(|key| values[key].as_str().unwrap_or_default());
        let turn = Turn {
            teacher: number("teacher_step_s")?,
            student: number("student_step_s")?,
            bytes: number("peak_bytes")?,
        };
        turns.push((names.join(" ").trim().to_string(), turn));
    }
    ensure!(!turns.is_empty(), "`{command}` printed no line of JSON:\n{text}{errors}");
    Ok(turns)
}

/// Prints and returns the medians of `turns`.
fn line(name: &str, turns: &[Turn]) -> Turn {
    let median = |of: fn(&Turn) -> f64| {
        let mut values: Vec<f64> = turns.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0
    };
    let turn =
        Turn { teacher: median(|t| t.teacher), student: median(|t| t.student), bytes: median(|t| t.bytes) };
    let both = turn.teacher + turn.student;
    println!(
        "{name:<42} {:>10.3} {:>10.3} {both:>10.3} {:>10.0}",
        turn.teacher,
        turn.student,
        turn.bytes / 1e6
    );
    turn
}
