//! Plots and series for several configurations.

use cdl_core::traits::Role;

use super::{
    configuration::Configuration,
    plot::{Plot, Series},
    recorded_run::RecordedRun,
};
use crate::statistics::Spread;

/// Plots of a section, each under the name of its file.
pub type Plots = Vec<(String, Plot)>;

/// Collects the plots that `plot` makes of each network of each configuration.
pub fn each_network<P>(
    configurations: &[Configuration],
    plot: impl Fn(&Configuration, Role, &str) -> P,
) -> Plots
where
    P: IntoIterator<Item = (String, Plot)>,
{
    let mut plots = Vec::new();
    for (index, configuration) in configurations.iter().enumerate() {
        let (file, title) = match (configurations, configuration.is_repeated()) {
            ([_], false) => (String::new(), String::new()),
            ([_], true) => (String::new(), format!("{}: ", configuration.title())),
            _ => (format!("{}_", index + 1), format!("{}: ", configuration.title())),
        };
        for role in configuration.first.roles() {
            let of_network = plot(configuration, role, &format!("{title}{}", role.as_str()));
            plots.extend(of_network.into_iter().map(|(name, plot)| (format!("{file}{name}"), plot)));
        }
    }
    plots
}

/// Series of each network of each configuration: means of `values` over its runs.
pub fn series(
    configurations: &[Configuration],
    values: impl Fn(&RecordedRun, Role) -> Option<Vec<Option<f64>>>,
) -> Vec<Series> {
    let mut all = Vec::new();
    for (index, configuration) in configurations.iter().enumerate() {
        for role in configuration.first.roles() {
            let rows: Vec<_> = configuration.runs.iter().filter_map(|run| values(run, role)).collect();
            let Some(longest) = rows.iter().map(Vec::len).max() else { continue };
            let at = |place: usize| -> Vec<f64> {
                rows.iter().filter_map(|row| row.get(place).copied().flatten()).collect()
            };
            let spreads: Vec<Option<Spread>> = (0..longest).map(|place| Spread::of(&at(place))).collect();
            let (name, colour) = match configurations {
                [_] => (role.as_str().to_string(), usize::from(role == Role::Teacher)),
                _ => (format!("{}, {}", configuration.name, role.as_str()), index),
            };
            all.push(Series::of_spreads(name, colour, role == Role::Teacher, &spreads));
        }
    }
    all
}

/// Replaces characters that are not safe in file names by underscores.
pub fn file_name(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect()
}

/// Names `1` to `count`.
pub fn numbers(count: usize) -> Vec<String> {
    (1..=count).map(|number| number.to_string()).collect()
}
