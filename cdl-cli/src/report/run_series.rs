//! Plots and series for several runs.

use cdl_core::traits::Role;

use super::{
    plot::{Plot, Series},
    recorded_run::RecordedRun,
};

/// Plots of a section, each under the name of its file.
pub type Plots = Vec<(String, Plot)>;

/// Collects the plots that `plot` makes of each network of each run.
pub fn each_network<P>(runs: &[RecordedRun], plot: fn(&RecordedRun, Role, &str) -> P) -> Plots
where
    P: IntoIterator<Item = (String, Plot)>,
{
    let mut plots = Vec::new();
    for (index, run) in runs.iter().enumerate() {
        let (file, title) = match runs.len() {
            1 => (String::new(), String::new()),
            _ => (format!("{}_", index + 1), format!("{}: ", run.name)),
        };
        for role in run.roles() {
            let of_network = plot(run, role, &format!("{title}{}", role.as_str()));
            plots.extend(of_network.into_iter().map(|(name, plot)| (format!("{file}{name}"), plot)));
        }
    }
    plots
}

/// Series of each network of each run. Colours distinguish the networks of a single run, or several runs.
pub fn series(
    runs: &[RecordedRun],
    values: impl Fn(&RecordedRun, Role) -> Option<Vec<Option<f64>>>,
) -> Vec<Series> {
    let mut all = Vec::new();
    for (index, run) in runs.iter().enumerate() {
        for role in run.roles() {
            let Some(values) = values(run, role) else { continue };
            let dashed = role == Role::Teacher;
            let (name, colour) = match runs.len() {
                1 => (role.as_str().to_string(), usize::from(dashed)),
                _ => (format!("{}, {}", run.name, role.as_str()), index),
            };
            all.push(Series { name, colour, dashed, values, ..Series::default() });
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
