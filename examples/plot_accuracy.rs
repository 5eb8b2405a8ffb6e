//! Draws the accuracy matrices of a run as heat maps, one for each network, into an SVG file.
//!
//! ```sh
//! cargo run --release -p cdl-examples --bin plot_accuracy -- runs/quickstart quickstart.svg
//! ```

use std::{fmt::Write, fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde::Deserialize;

/// Draw the accuracy matrices of a run.
#[derive(Parser)]
struct Args {
    /// Directory of a run, with results.json.
    run: PathBuf,
    /// SVG file to write.
    out: PathBuf,
}

/// The part of results.json that is drawn.
#[derive(Deserialize)]
struct Results {
    student: Option<Network>,
    teacher: Option<Network>,
}

#[derive(Deserialize)]
struct Network {
    accuracy_matrix: Vec<Vec<f64>>,
    average_accuracy: f64,
    forgetting: f64,
}

/// Side of a cell, room for the labels at the left and at the top, and between two maps, in pixels.
const CELL: usize = 56;
const LEFT: usize = 92;
const TOP: usize = 74;
const BELOW: usize = 20;

fn main() -> Result<()> {
    let args = Args::parse();
    let file = args.run.join("results.json");
    let json = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
    let results: Results =
        serde_json::from_slice(&json).with_context(|| format!("reading {}", file.display()))?;
    let networks: Vec<(&str, Network)> = [("Teacher", results.teacher), ("Student", results.student)]
        .into_iter()
        .filter_map(|(name, network)| Some((name, network?)))
        .collect();
    ensure!(!networks.is_empty(), "{} has no accuracies yet", file.display());
    let tasks = networks.iter().map(|(_, network)| network.accuracy_matrix.len()).max().unwrap_or(0);
    let width = networks.len() * (LEFT + tasks * CELL) + BELOW;
    let height = TOP + tasks * CELL + BELOW;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (index, (name, network)) in networks.iter().enumerate() {
        draw(&mut svg, index * (LEFT + tasks * CELL), name, network)?;
    }
    svg += "</svg>\n";
    fs::write(&args.out, svg).with_context(|| format!("writing {}", args.out.display()))
}

/// One heat map with its upper left corner at `x`: rows are tasks learned, columns tasks tested.
fn draw(svg: &mut String, x: usize, name: &str, network: &Network) -> Result<()> {
    let left = x + LEFT;
    let Network { accuracy_matrix, average_accuracy, forgetting } = network;
    writeln!(svg, "<text x=\"{left}\" y=\"22\" font-size=\"17\" font-weight=\"bold\">{name}</text>")?;
    writeln!(
        svg,
        "<text x=\"{left}\" y=\"41\" font-size=\"12\" fill=\"#444\">average accuracy {average_accuracy:.1} %, \
         forgetting {forgetting:.1}</text>"
    )?;
    for (row, accuracies) in accuracy_matrix.iter().enumerate() {
        let y = TOP + row * CELL;
        let middle = y + CELL / 2 + 5;
        let number = row + 1;
        let column = left + row * CELL + CELL / 2;
        writeln!(
            svg,
            "<text x=\"{}\" y=\"{middle}\" font-size=\"12\" text-anchor=\"end\">after {number}</text>",
            left - 8
        )?;
        writeln!(
            svg,
            "<text x=\"{column}\" y=\"{}\" font-size=\"12\" text-anchor=\"middle\">task {number}</text>",
            TOP - 8
        )?;
        for (column, accuracy) in accuracies.iter().enumerate() {
            let x = left + column * CELL;
            let ink = if *accuracy > 55.0 { "white" } else { "black" };
            writeln!(
                svg,
                "<rect x=\"{x}\" y=\"{y}\" width=\"{CELL}\" height=\"{CELL}\" fill=\"{}\" stroke=\"white\"/>\
                 <text x=\"{}\" y=\"{middle}\" font-size=\"14\" text-anchor=\"middle\" fill=\"{ink}\">{accuracy:.1}</text>",
                shade(*accuracy),
                x + CELL / 2,
            )?;
        }
    }
    Ok(())
}

/// From pale (0 %) to dark blue (100 %).
fn shade(accuracy: f64) -> String {
    let share = (accuracy / 100.0).clamp(0.0, 1.0);
    let [r, g, b] = [(236.0, 8.0), (242.0, 64.0), (250.0, 129.0)]
        .map(|(pale, dark): (f64, f64)| (pale + (dark - pale) * share).round() as u8);
    format!("#{r:02x}{g:02x}{b:02x}")
}
