//! Plots of losses over the steps of each task.

use std::collections::{BTreeMap, BTreeSet};

use cdl_core::traits::Role;

use super::{
    configuration::Configuration,
    configuration_series::{Plots, file_name},
    plot::{self, Series},
    recorded_run::ROLES,
};
use crate::statistics::Spread;

/// Mean over the runs of a configuration, by task and step of the task.
type Curve = BTreeMap<(usize, u64), Option<Spread>>;

/// Plots over the steps of all tasks, one for each network and loss term. Tasks are aligned, so that runs with other
/// numbers of epochs or batch sizes can be compared.
pub fn losses(configurations: &[Configuration]) -> Plots {
    let mut plots = Vec::new();
    for role in ROLES {
        let all: Vec<_> = configurations.iter().map(|configuration| curves(configuration, role)).collect();
        let names: BTreeSet<&String> = all.iter().flat_map(BTreeMap::keys).collect();
        for name in names {
            let curves: Vec<Option<&Curve>> = all.iter().map(|curves| curves.get(name)).collect();
            let places: BTreeSet<(usize, u64)> =
                curves.iter().flatten().flat_map(|curve| curve.keys()).copied().collect();
            let dashed = role == Role::Teacher;
            let series: Vec<Series> = (configurations.iter().zip(&curves).enumerate())
                .filter_map(|(index, (configuration, curve))| {
                    let curve = (*curve)?;
                    let spreads: Vec<_> =
                        places.iter().map(|place| curve.get(place).copied().flatten()).collect();
                    let colour = if configurations.len() == 1 { usize::from(dashed) } else { index };
                    Some(Series::of_spreads(configuration.name.clone(), colour, dashed, &spreads))
                })
                .collect();
            let plot = plot::lines(&format!("{}: {name}", role.as_str()), &plot::of_steps(&places), &series);
            plots.push((format!("loss_{}_{}", role.as_str(), file_name(name)), plot));
        }
    }
    plots
}

/// Curve of each loss term of a network. The mean over an epoch is at the last step of the epoch, which is that of the
/// first run: damaged images that are skipped can change the number of steps.
fn curves(configuration: &Configuration, role: Role) -> BTreeMap<String, Curve> {
    let mut steps: BTreeMap<(usize, usize), u64> = BTreeMap::new();
    let mut values: BTreeMap<&String, BTreeMap<(usize, usize), Vec<f64>>> = BTreeMap::new();
    for run in &configuration.runs {
        let (mut task, mut step) = (0, 0);
        for epoch in run.epochs.iter().filter(|epoch| epoch.role == role) {
            (task, step) = (epoch.task, if epoch.task == task { step } else { 0 } + run.steps(epoch));
            let at = (epoch.task, epoch.epoch);
            steps.entry(at).or_insert(step);
            for (name, value) in &epoch.losses {
                values.entry(name).or_default().entry(at).or_default().push(*value);
            }
        }
    }
    let curve = |points: BTreeMap<(usize, usize), Vec<f64>>| {
        let point = |((task, epoch), values): ((usize, usize), Vec<f64>)| {
            Some(((task, *steps.get(&(task, epoch))?), Spread::of(&values)))
        };
        points.into_iter().filter_map(point).collect()
    };
    values.into_iter().map(|(name, points)| (name.clone(), curve(points))).collect()
}
