//! Plots of losses over epochs.

use std::collections::BTreeSet;

use cdl_core::{train::EpochReport, traits::Role};

use super::{
    plot::{self, Axes, Series},
    recorded_run::{ROLES, RecordedRun},
    run_series::{Plots, file_name, numbers},
};

/// Plots over all epochs, one for each network and loss term.
pub fn losses(runs: &[RecordedRun]) -> Plots {
    let mut plots = Vec::new();
    for role in ROLES {
        let of_role = |run: &RecordedRun| -> Vec<EpochReport> {
            run.epochs.iter().filter(|epoch| epoch.role == role).cloned().collect()
        };
        let all: Vec<Vec<EpochReport>> = runs.iter().map(of_role).collect();
        let names: BTreeSet<&String> = all.iter().flatten().flat_map(|epoch| epoch.losses.keys()).collect();
        let Some(longest) = all.iter().max_by_key(|epochs| epochs.len()) else { continue };
        let (mut groups, mut start) = (Vec::new(), 0);
        for epochs in longest.chunk_by(|a, b| a.task == b.task) {
            let first = epochs.first().filter(|first| first.tasks <= 10);
            groups.push((start, first.map(|first| format!("task {}", first.task)).unwrap_or_default()));
            start += epochs.len();
        }
        let dashed = role == Role::Teacher;
        let places = numbers(longest.len());
        let axes = Axes { x: "epoch", percent: false, places, groups };
        for name in names {
            let series: Vec<Series> = (runs.iter().zip(&all).enumerate())
                .filter(|(_, (_, epochs))| epochs.iter().any(|epoch| epoch.losses.contains_key(name)))
                .map(|(index, (run, epochs))| Series {
                    name: run.name.clone(),
                    colour: if runs.len() == 1 { usize::from(dashed) } else { index },
                    dashed,
                    values: epochs.iter().map(|epoch| epoch.losses.get(name).copied()).collect(),
                    ..Series::default()
                })
                .collect();
            let plot = plot::lines(&format!("{}: {name}", role.as_str()), &axes, &series, 520.0);
            plots.push((format!("loss_{}_{}", role.as_str(), file_name(name)), plot));
        }
    }
    plots
}
