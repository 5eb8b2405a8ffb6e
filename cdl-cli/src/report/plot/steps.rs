//! Axis of training steps, which start again with each task.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    elements::text_width,
    frame::{Axes, LEFT, Place, RIGHT},
};

/// Axes with a group for each task. `places` are tasks (from 1) and steps of the task. All steps have the same width,
/// and a task is as wide as its last step requires.
pub fn of_steps(places: &BTreeSet<(usize, u64)>) -> Axes {
    let mut lengths: BTreeMap<usize, u64> = BTreeMap::new();
    for &(task, step) in places {
        let length = lengths.entry(task).or_insert(1);
        *length = step.max(*length);
    }
    let whole = lengths.values().sum::<u64>().max(1) as f64;
    let longest = lengths.values().copied().max().unwrap_or(1);
    let apart = ticks_apart(longest, (RIGHT - LEFT) / whole);
    let mut axes =
        Axes { x: String::new(), percent: false, places: Vec::new(), ticks: Vec::new(), groups: Vec::new() };
    let mut start = 0;
    for (group, (&task, &length)) in lengths.iter().enumerate() {
        let at = |step: u64| (start + step) as f64 / whole;
        axes.groups.push((at(0), format!("task {task}")));
        // Half a tick distance before the next task stays free for the label of that task's first step.
        let is_last = group + 1 == lengths.len();
        let fits = |step: &u64| *step == 0 || is_last || 2 * (length - step) >= apart as u64;
        let labels = (0..=length).step_by(apart).filter(fits);
        axes.ticks.extend(labels.map(|step| (at(step), step.to_string())));
        let of_task = places.range((task, 0)..=(task, u64::MAX));
        let place = |&(_, step): &(usize, u64)| Place {
            at: at(step),
            name: format!("task {task}, step {step}"),
            group,
        };
        axes.places.extend(of_task.map(place));
        start += length;
    }
    let equal = lengths.values().all(|length| *length == longest);
    axes.x = format!("step of the task{}", if equal { format!(", 0 to {longest}") } else { String::new() });
    axes
}

/// Round number of steps between labels that leaves room for them, if a step is `step` pixels wide.
fn ticks_apart(longest: u64, step: f64) -> usize {
    let room = text_width(&longest.to_string()) + 14.0;
    let rounds = (0..9).flat_map(|power| [1, 2, 5].map(|round| round * 10usize.pow(power)));
    rounds.into_iter().find(|apart| *apart as f64 * step >= room).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_start_again_with_each_task_at_one_scale() {
        let axes = of_steps(&BTreeSet::from([(1, 10), (1, 20), (2, 30), (2, 15), (1, 5)]));
        let at: Vec<(f64, usize)> = axes.places.iter().map(|place| (place.at, place.group)).collect();
        assert_eq!(at, [(0.1, 0), (0.2, 0), (0.4, 0), (0.7, 1), (1.0, 1)]);
        assert_eq!(axes.groups, [(0.0, "task 1".to_string()), (0.4, "task 2".to_string())]);
        assert_eq!(axes.places[3].name, "task 2, step 15");
        let ticks: Vec<&str> = axes.ticks.iter().map(|(_, step)| step.as_str()).collect();
        assert_eq!(ticks, ["0", "5", "10", "15", "0", "5", "10", "15", "20", "25", "30"]);
        assert_eq!(axes.x, "step of the task");
    }

    #[test]
    fn extreme_numbers_of_steps_have_few_labels() {
        for (tasks, steps) in [(1, 1), (1, u64::from(u32::MAX)), (200, 7), (2, 0)] {
            let places = (1..=tasks).map(|task| (task, steps)).collect();
            let axes = of_steps(&places);
            assert!(axes.ticks.len() <= tasks * 40, "{tasks} {steps}: {}", axes.ticks.len());
            assert!(axes.places.iter().all(|place| (0.0..=1.0).contains(&place.at)));
        }
        assert!(of_steps(&BTreeSet::new()).places.is_empty());
    }
}
