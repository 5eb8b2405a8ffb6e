//! Plots of confusion matrices.

use std::collections::BTreeMap;

use cdl_core::{metrics::Confusion, traits::Role};

use super::{
    configuration::Configuration,
    configuration_series::{Plots, each_network},
    plot::{self, Cell, Plot},
    recorded_run::RecordedRun,
};
use crate::terminal;

/// Largest number of classes that are drawn as cells with names. Larger matrices are drawn as an image.
const MOST_CLASSES: usize = 100;

/// Sum of confusion matrices.
struct Sum<'a> {
    /// Class names in the order of the first matrix.
    classes: &'a [String],
    counts: Vec<Vec<u64>>,
}

/// Confusion matrix of each network, summed over the runs of a configuration.
pub fn confusions(configurations: &[Configuration]) -> Plots {
    each_network(configurations, |configuration, role, title| {
        let sum = sum(configuration, role)?;
        let plot = match sum.classes.len() > MOST_CLASSES {
            true => as_image(configuration.first, &sum, title)?,
            false => as_cells(&sum, title),
        };
        Some((format!("confusion_{}", role.as_str()), plot))
    })
}

/// Sums the matrices by the names of the classes, whose order may depend on the seed. Matrices whose classes differ
/// from those of the first are left out.
fn sum<'a>(configuration: &Configuration<'a>, role: Role) -> Option<Sum<'a>> {
    let mut matrices = configuration.runs.iter().filter_map(|run| run.confusions.of(role).as_ref());
    let first: &'a Confusion = matrices.next()?;
    let (classes, mut counts) = (first.classes(), first.counts().to_vec());
    for other in matrices {
        let at: BTreeMap<&String, usize> = (0..).zip(other.classes()).map(|(at, name)| (name, at)).collect();
        let places: Option<Vec<usize>> = classes.iter().map(|name| at.get(name).copied()).collect();
        let Some(places) = places.filter(|places| places.len() == other.classes().len()) else { continue };
        for (row, truth) in counts.iter_mut().zip(&places) {
            for (count, predicted) in row.iter_mut().zip(&places) {
                *count +=
                    other.counts().get(*truth).and_then(|row| row.get(*predicted)).copied().unwrap_or(0);
            }
        }
    }
    Some(Sum { classes, counts })
}

/// Share of a count in the images of the true class.
fn share(count: u64, row: &[u64]) -> f64 {
    count as f64 / row.iter().sum::<u64>().max(1) as f64
}

fn as_cells(Sum { classes, counts }: &Sum, title: &str) -> Plot {
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
fn as_image(run: &RecordedRun, sum: &Sum, title: &str) -> Option<Plot> {
    let shades: Vec<Vec<f64>> =
        (sum.counts.iter()).map(|row| row.iter().map(|count| share(*count, row).sqrt()).collect()).collect();
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
