//! Runs of one configuration, which differ in their seeds.

use cdl_core::{metrics::Definition, run::resume_check::changes_results, traits::Role};

use super::recorded_run::RecordedRun;
use crate::{statistics::Spread, terminal::count};

/// Settings that draw random numbers. Runs that differ only in these are repetitions of one configuration.
const SEEDS: [&str; 2] = ["seed", "stream.class_order_seed"];

/// Runs of one configuration.
pub struct Configuration<'a> {
    /// Name for tables and legends.
    pub name: String,
    /// First of the runs.
    pub first: &'a RecordedRun,
    /// All runs in the order of the command line.
    pub runs: Vec<&'a RecordedRun>,
}

impl Configuration<'_> {
    /// True if values are means over several runs.
    pub fn is_repeated(&self) -> bool {
        self.runs.len() > 1
    }

    /// Name with the number of seeds, if there are several.
    pub fn title(&self) -> String {
        match self.runs.len() {
            1 => self.name.clone(),
            seeds => format!("{} ({})", self.name, count(seeds, "seed")),
        }
    }

    /// Mean and deviation of a metric over the runs.
    pub fn spread(&self, role: Role, definition: &Definition) -> Option<Spread> {
        let value = |run: &&RecordedRun| run.results.of(role).and_then(definition.value);
        Spread::of(&self.runs.iter().filter_map(value).collect::<Vec<_>>())
    }
}

/// True for settings that draw random numbers.
pub fn is_seed(key: &str) -> bool {
    SEEDS.contains(&key)
}

/// Groups runs by configuration, in the order of their first runs. Runs with different files of data or weights, or
/// with different numbers of finished tasks, are in different groups.
pub fn configurations(runs: &[RecordedRun]) -> Vec<Configuration<'_>> {
    let (mut keys, mut groups) = (Vec::new(), Vec::<Configuration>::new());
    for run in runs {
        let mut values = run.values();
        values.retain(|key, _| changes_results(key) && !is_seed(key));
        let progress = (run.results.tasks_done, run.results.tasks);
        let key = (values, progress, run.data_sums(), run.weights_sums());
        let group = keys.iter().position(|other| *other == key).and_then(|at| groups.get_mut(at));
        match group {
            Some(group) => group.runs.push(run),
            None => {
                keys.push(key);
                groups.push(Configuration { name: String::new(), first: run, runs: vec![run] });
            }
        }
    }
    let names = unique(&groups.iter().map(candidates).collect::<Vec<_>>());
    groups.iter_mut().zip(names).for_each(|(group, name)| group.name = name);
    groups
}

/// Possible names of a configuration, the best first: the common beginning of its runs' names, its methods, and the
/// name of its first run, which no other configuration has.
fn candidates(configuration: &Configuration) -> [String; 3] {
    let first = &configuration.first.name;
    let names: Vec<&str> = configuration.runs.iter().map(|run| run.name.as_str()).collect();
    [common_name(first, &names), configuration.first.methods(), first.clone()]
}

/// Common beginning of all `names`, among them `first`, without a word for the seed at its end.
fn common_name(first: &str, names: &[&str]) -> String {
    if names.len() == 1 {
        return first.into();
    }
    let shared = |name: &&str| first.chars().zip(name.chars()).take_while(|(a, b)| a == b).count();
    let common: String = first.chars().take(names.iter().map(shared).min().unwrap_or(0)).collect();
    // Seeds may begin with the same digits.
    let trimmed = |text: &str| text.trim_end_matches(|c: char| !c.is_alphanumeric()).to_string();
    let common = trimmed(common.trim_end_matches(|c: char| c.is_ascii_digit()));
    common.strip_suffix("seed").map_or(common.clone(), trimmed)
}

/// First candidate of each configuration that is not empty and that no other configuration has; otherwise the last.
fn unique(candidates: &[[String; 3]]) -> Vec<String> {
    let name = |(index, names): (usize, &[String; 3])| {
        let others = || candidates.iter().enumerate().filter(move |(other, _)| *other != index);
        let is_free = |name: &&String| !name.is_empty() && !others().any(|(_, names)| names.contains(name));
        let [.., last] = names;
        names.iter().find(is_free).unwrap_or(last).clone()
    };
    candidates.iter().enumerate().map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::{common_name, unique};

    #[test]
    fn configurations_are_named_by_the_common_beginning_of_their_runs() {
        for (names, common) in [
            (&["kd_seed_1", "kd_seed_2"][..], "kd"),
            (&["distiller-none--seed-1", "distiller-none--seed-12"], "distiller-none"),
            (&["seed1", "seed2"], ""),
            (&["größe 1", "größer"], "größe"),
            (&["alone_1"], "alone_1"),
        ] {
            assert_eq!(common_name(names[0], names), common);
        }
        let candidates = |names: [&str; 3]| names.map(String::from);
        let all = [candidates(["run", "a, b", "run1"]), candidates(["run", "a, c", "run2"])];
        assert_eq!(unique(&all), ["a, b", "a, c"]);
        let all = [candidates(["", "a, b", "1"]), candidates(["x", "a, b", "x1"])];
        assert_eq!(unique(&all), ["1", "x"]);
    }
}
