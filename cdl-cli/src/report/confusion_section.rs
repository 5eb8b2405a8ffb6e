//! Plots of confusion matrices.

use cdl_core::metrics::Confusion;

use super::{
    plot::{self, Cell, Plot},
    recorded_run::RecordedRun,
    run_series::{Plots, each_network},
};
use crate::terminal;

/// Largest number of classes that are drawn as cells with names. Larger matrices are drawn as an image.
const MOST_CLASSES: usize = 100;

/// Confusion matrix of each network.
pub fn confusions(runs: &[RecordedRun]) -> Plots {
    each_network(runs, |run, role, title| {
        let confusion = run.confusions.of(role).as_ref()?;
        let plot = match confusion.classes().len() > MOST_CLASSES {
            true => as_image(run, confusion, title)?,
            false => as_cells(confusion, title),
        };
        Some((format!("confusion_{}", role.as_str()), plot))
    })
}

/// Share of a count in the images of the true class.
fn share(count: u64, row: &[u64]) -> f64 {
    count as f64 / row.iter().sum::<u64>().max(1) as f64
}

fn as_cells(confusion: &Confusion, title: &str) -> Plot {
    let (classes, counts) = (confusion.classes(), confusion.counts());
    let cell = |truth: usize, predicted: usize, count: &u64| {
        let shade = share(*count, &counts[truth]);
        let (truth, predicted) = (&classes[truth], &classes[predicted]);
        let images = terminal::count(*count as usize, "image");
        let tip = format!("{truth} classified as {predicted}: {images}, {:.1} %", 100.0 * shade);
        let label = if *count == 0 { String::new() } else { count.to_string() };
        Cell { shade, label, tip }
    };
    plot::heat(title, (classes, classes), ("true class", "predicted class"), counts, cell, None)
}

/// Draws a matrix as an image with lines between tasks. Shades are square roots of shares, so that small shares are
/// visible.
fn as_image(run: &RecordedRun, confusion: &Confusion, title: &str) -> Option<Plot> {
    let shades: Vec<Vec<f64>> = (confusion.counts().iter())
        .map(|row| row.iter().map(|count| share(*count, row).sqrt()).collect())
        .collect();
    let groups: Vec<(usize, String)> = (run.record["tasks"].as_array().into_iter().flatten().enumerate())
        .filter_map(|(task, classes)| {
            let start = usize::try_from(classes["start"].as_u64()?).ok()?;
            (start < shades.len()).then(|| (start, (task + 1).to_string()))
        })
        .collect();
    let title = format!("{title} (shades are square roots of the shares)");
    let axes = ("true class, by task", "predicted class, by task");
    plot::picture(&title, axes, &shades, &groups)
}
