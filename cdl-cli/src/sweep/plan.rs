//! Plan of a sweep: the product of all axes, stored in the sweep's folder.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use cdl_core::{
    config::{Config, ConfigLayers},
    run::resume_check::check_config,
    system::atomic::write_atomic,
};
use serde::{Deserialize, Serialize};

use super::{
    axis::{self, Axis, Value, short_hash},
    layout::{FILE, config_file, read_recorded},
};
use crate::{
    failure::{Failure, first_line, io},
    plugin::loading,
    terminal::count,
};

/// Maximum number of cells. Larger grids are probably errors in the command.
const MAX_CELLS: usize = 10_000;
/// Maximum length of a cell's name in bytes, within the limits of file systems.
const MAX_NAME: usize = 160;

/// Contents of `sweep.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Configuration files of every cell; later files override earlier ones.
    pub configs: Vec<PathBuf>,
    /// Settings of every cell, as in `--set`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sets: Vec<String>,
    /// Combination that the others are compared with, as `NAME=VALUE`; the first one if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub baseline: Vec<String>,
    /// Cells that run at once.
    pub jobs: usize,
    /// Axes to compare. Each choice of one value per axis is a combination.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vary: Vec<Axis>,
    /// Axes of repetitions, such as seeds. Means are taken over all choices of one value per axis.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub repeat: Vec<Axis>,
}

/// One run of a sweep.
#[derive(Debug, Clone)]
pub struct Cell {
    /// Name of the cell and of its folder.
    pub name: String,
    /// Index of the combination that the cell repeats.
    pub combination: usize,
    /// Value of every axis, in the order of [`Plan::axes`].
    pub values: Vec<Value>,
}

/// All choices of one value per axis; the last axis changes fastest. Without axes there is one empty choice.
fn product(axes: &[Axis]) -> Vec<Vec<&Value>> {
    axes.iter().fold(vec![Vec::new()], |choices, axis| {
        let with = |choice: &Vec<_>, value| choice.iter().copied().chain([value]).collect();
        choices.iter().flat_map(|choice| axis.values.iter().map(move |value| with(choice, value))).collect()
    })
}

/// Lists the first three names and the number of the others, for messages.
pub fn first_names(names: &[String]) -> String {
    match names {
        [a, b, c, _, ..] => format!("{a}, {b}, {c} and {} more", names.len() - 3),
        few => few.join(", "),
    }
}

/// Failure of a sweep before any cell is started, with the cells that have each error.
pub fn nothing_started(errors: &[(String, Vec<String>)], code: u8) -> Failure {
    let lines = errors.iter().map(|(error, cells)| format!("\n  {}: {error}", first_names(cells)));
    Failure { message: format!("nothing was started:{}", lines.collect::<String>()), code }
}

impl Plan {
    /// Labels of each combination.
    pub fn combinations(&self) -> Vec<Vec<String>> {
        let labels = |choice: Vec<&Value>| choice.into_iter().map(|value| value.label.clone()).collect();
        product(&self.vary).into_iter().map(labels).collect()
    }

    /// All axes: those to compare, then the repetitions.
    pub fn axes(&self) -> impl Iterator<Item = &Axis> {
        self.vary.iter().chain(&self.repeat)
    }

    /// All cells, combination by combination.
    pub fn cells(&self) -> Vec<Cell> {
        let (repeated, mut cells) = (product(&self.repeat), Vec::new());
        for (combination, choice) in product(&self.vary).iter().enumerate() {
            for again in &repeated {
                let values: Vec<Value> = choice.iter().chain(again).map(|&value| value.clone()).collect();
                let parts: Vec<String> =
                    self.axes().zip(&values).map(|(axis, value)| axis.part(value)).collect();
                let whole = if parts.is_empty() { "run".into() } else { parts.join("--") };
                let name = match whole.len() > MAX_NAME {
                    true => format!("{}-{}", &whole[..MAX_NAME - 9], short_hash(&whole)),
                    false => whole,
                };
                cells.push(Cell { name, combination, values });
            }
        }
        cells
    }

    /// Index of the combination that the others are compared with.
    pub fn baseline(&self) -> Result<usize, Failure> {
        let fail =
            |reason: String| Failure::invalid(format!("--baseline {}: {reason}", self.baseline.join(" ")));
        let mut wanted = Vec::new();
        for part in &self.baseline {
            let (name, label) = part
                .split_once('=')
                .ok_or_else(|| fail("expected NAME=VALUE of a varied key or file".into()))?;
            let name = name.strip_suffix(".name").unwrap_or(name);
            let at = self.vary.iter().position(|axis| axis.name == name).ok_or_else(|| {
                let names: Vec<&str> = self.vary.iter().map(|axis| axis.name.as_str()).collect();
                fail(format!("`{name}` is not varied; expected one of {}", names.join(", ")))
            })?;
            let label = axis::label(label);
            let values: Vec<&str> = self.vary[at].values.iter().map(|value| value.label.as_str()).collect();
            if !values.contains(&label.as_str()) {
                let values = values.join(", ");
                return Err(fail(format!("`{name}` has no value {label}; expected one of {values}")));
            }
            wanted.push((at, label));
        }
        let fits = |labels: &Vec<String>| {
            wanted.iter().all(|(at, label)| labels.get(*at).is_some_and(|own| own == label))
        };
        self.combinations()
            .iter()
            .position(fits)
            .ok_or_else(|| fail("no combination has all of these values".into()))
    }

    /// Checks that axes and settings do not contradict one another and that the grid is not too large.
    fn check_axes(&self) -> Result<(), Failure> {
        let mut names = BTreeSet::new();
        for axis in self.axes() {
            if !names.insert(&axis.name) {
                let again = "is varied twice; give all values in one option, or give the files another NAME";
                return Err(Failure::invalid(format!("`{}` {again}", axis.name)));
            }
            let mut labels = BTreeSet::new();
            if let Some(again) = axis.values.iter().find(|value| !labels.insert(&value.label)) {
                return Err(Failure::invalid(format!("`{}`: {} is given twice", axis.name, again.label)));
            }
            let sets = axis.values.iter().flat_map(|value| &value.sets);
            for (key, _) in sets.filter_map(|set| set.split_once('=')) {
                let fixed = |set: &&String| set.split_once('=').is_some_and(|(fixed, _)| fixed.trim() == key);
                if let Some(set) = self.sets.iter().find(fixed) {
                    return Err(Failure::invalid(format!(
                        "--set {set}: `{key}` is also varied; remove one of the two"
                    )));
                }
            }
        }
        let count = self.axes().try_fold(1usize, |count, axis| count.checked_mul(axis.values.len()));
        if count.is_none_or(|count| count > MAX_CELLS) {
            return Err(Failure::invalid(format!(
                "the grid has {} cells; expected at most {MAX_CELLS}",
                count.map_or("too many".into(), |count| count.to_string())
            )));
        }
        self.baseline().map(|_| ())
    }

    /// Resolves the configuration of every cell.
    ///
    /// # Errors
    /// Reports the errors of all cells at once.
    pub fn resolve(&self) -> Result<Vec<(Cell, Config)>, Failure> {
        self.check_axes()?;
        let mut resolved: Vec<(Cell, Config)> = Vec::new();
        // An error in a base file is an error of every cell. It is reported once.
        let mut errors: Vec<(String, Vec<String>)> = Vec::new();
        let (mut names, mut runs) = (BTreeMap::new(), BTreeMap::new());
        for cell in self.cells() {
            let files: Vec<&PathBuf> =
                self.configs.iter().chain(cell.values.iter().flat_map(|value| &value.files)).collect();
            let sets: Vec<String> =
                self.sets.iter().chain(cell.values.iter().flat_map(|value| &value.sets)).cloned().collect();
            let mut found: Vec<String> = Vec::new();
            let layers = ConfigLayers::read(&files, &sets);
            let draft = loading::load_named(&layers).map(|()| layers.draft());
            match draft.map(|draft| (draft.errors.iter().map(first_line).collect(), draft.config)) {
                Err(failure) => found.push(failure.message),
                Ok((errors, Some(config))) if Vec::is_empty(&errors) => {
                    if let Some(other) = names.insert(cell.name.to_lowercase(), cell.name.clone()) {
                        found.push(format!("has the same name as the cell `{other}`, except for case"));
                    } else if let Some(other) = runs.insert(config.to_toml()?, cell.name.clone()) {
                        found.push(format!("would be the same run as {other}"));
                    }
                    resolved.push((cell.clone(), config));
                }
                Ok((errors, _)) => found = errors,
            }
            for error in found {
                match errors.iter_mut().find(|(other, _)| *other == error) {
                    Some((_, cells)) => cells.push(cell.name.clone()),
                    None => errors.push((error, vec![cell.name.clone()])),
                }
            }
        }
        match errors.is_empty() {
            true => Ok(resolved),
            false => Err(nothing_started(&errors, 2)),
        }
    }

    /// Reads the plan of the sweep in `folder`.
    pub fn read(folder: &Path) -> Result<Self, Failure> {
        let file = folder.join(FILE);
        let fail = |reason: String| Failure::invalid(format!("{}: {reason}", file.display()));
        let text = cdl_core::system::files::read_to_string(&file)
            .map_err(|e| fail(format!("{e}; is it a sweep?")))?;
        let plan: Self = toml::from_str(&text).map_err(|e| fail(e.message().into()))?;
        plan.check_axes()?;
        if plan.jobs == 0 {
            return Err(fail("`jobs = 0`: expected at least 1".into()));
        }
        if let Some(axis) = plan.axes().find(|axis| axis.values.is_empty()) {
            return Err(fail(format!("`{}` has no values", axis.name)));
        }
        Ok(plan)
    }

    /// Default folder. It depends on the plan alone, so that repeating the command continues the sweep.
    pub fn default_folder(&self) -> Result<PathBuf, Failure> {
        let stems = self.configs.iter().filter_map(|file| file.file_stem());
        let name: Vec<String> = stems.map(|stem| stem.to_string_lossy().into_owned()).collect();
        // Jobs and baseline do not change the cells.
        let same = Self { jobs: 1, baseline: Vec::new(), ..self.clone() };
        Ok(Path::new("sweeps").join(format!("{}-{}", name.join("-"), short_hash(&same.to_toml()?))))
    }

    fn to_toml(&self) -> Result<String, Failure> {
        toml::to_string(self).map_err(|e| Failure::working(format!("{FILE}: {e}")))
    }

    /// Adopts baseline and jobs of the `earlier` plan in `folder`, which this one replaces.
    ///
    /// # Errors
    /// Fails if a cell of the earlier plan is missing in this one: sweeps can only be extended.
    pub fn extend(&mut self, earlier: Self, folder: &Path) -> Result<(), Failure> {
        let cells: BTreeSet<String> = self.cells().into_iter().map(|cell| cell.name).collect();
        let missing: Vec<String> =
            earlier.cells().into_iter().map(|cell| cell.name).filter(|name| !cells.contains(name)).collect();
        if let Some(first) = missing.first() {
            let (folder, missing) = (folder.display(), count(missing.len(), "cell"));
            return Err(Failure::invalid(format!(
                "{folder}: contains a sweep with {missing} that the new one lacks, such as {first}; a sweep can be \
                 extended but not changed; choose another --out"
            )));
        }
        (self.baseline, self.jobs) = (earlier.baseline, earlier.jobs);
        Ok(())
    }

    /// Applies `--baseline` and `--jobs`, if given. Neither changes the cells.
    pub fn apply_options(&mut self, baseline: &[String], jobs: Option<usize>) -> Result<(), Failure> {
        if !baseline.is_empty() {
            self.baseline = baseline.into();
        }
        self.jobs = jobs.unwrap_or(self.jobs);
        self.baseline().map(|_| ())
    }

    /// Writes the plan.
    pub fn save(&self, folder: &Path) -> Result<(), Failure> {
        Ok(write_atomic(&folder.join(FILE), self.to_toml()?.as_bytes())?)
    }

    /// Writes the plan and the configuration of every cell into `folder`.
    ///
    /// # Errors
    /// Fails if the folder contains a cell with another configuration.
    pub fn write(&self, folder: &Path, cells: &[(Cell, Config)]) -> Result<(), Failure> {
        // All configurations are compared before any file is written.
        let mut new_files = Vec::new();
        for (cell, config) in cells {
            let file = config_file(folder, &cell.name);
            match read_recorded(&file) {
                Ok(begun) => check_config(config, &begun).map_err(|error| {
                    let other = "the sweep in this folder was started with another configuration";
                    Failure::invalid(format!("{}: {other}: {}", cell.name, first_line(&error)))
                })?,
                Err(reason) => {
                    // Rewriting is safe: if the cell has a run, its `config.toml` is compared, too.
                    if file.exists() {
                        tracing::warn!("{reason}; it is written again");
                    }
                    new_files.push((file, config.to_toml()?));
                }
            }
        }
        self.save(folder)?;
        let configs = folder.join("configs");
        fs::create_dir_all(&configs).map_err(io(&configs))?;
        for (file, toml) in new_files {
            write_atomic(&file, toml.as_bytes())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(vary: &[&str], repeat: &[&str]) -> Plan {
        let axes = |texts: &[&str]| {
            let axis = |text: &&str| Axis::of_key("--vary", text).map_err(|e| e.message).expect("an axis");
            texts.iter().map(axis).collect()
        };
        let (vary, repeat) = (axes(vary), axes(repeat));
        Plan { configs: vec!["a.toml".into()], sets: vec![], baseline: vec![], jobs: 1, vary, repeat }
    }

    #[test]
    fn cells_are_ordered_by_combination_then_repetition() {
        let plan = plan(&["distiller.name=none,one", "learner.pool=5,10"], &["seed=1,2"]);
        let cells = plan.cells();
        assert_eq!(cells.len(), 8);
        assert_eq!(cells[0].name, "distiller-none--learner.pool-5--seed-1");
        assert_eq!(cells[7].name, "distiller-one--learner.pool-10--seed-2");
        assert_eq!(cells[3].combination, 1);
        assert_eq!(plan.combinations()[2], ["one", "5"]);
        assert_eq!(self::plan(&[], &[]).cells()[0].name, "run");
    }

    #[test]
    fn the_baseline_is_the_first_combination_by_default() {
        let mut plan = plan(&["distiller.name=none,one", "learner.pool=5,10"], &["seed=1"]);
        let of = |plan: &Plan| plan.baseline().map_err(|e| e.message);
        assert_eq!(of(&plan), Ok(0));
        plan.baseline = vec!["learner.pool=10".into()];
        assert_eq!(of(&plan), Ok(1));
        plan.baseline.push("distiller.name=one".into());
        assert_eq!(of(&plan), Ok(3));
    }

    #[test]
    fn grids_too_large_to_count_are_refused() {
        let digits = "x=0,1,2,3,4,5,6,7,8,9";
        let axes: Vec<String> = (0..30).map(|at| digits.replace('x', &format!("learner.k{at}"))).collect();
        let axes: Vec<&str> = axes.iter().map(String::as_str).collect();
        assert!(plan(&axes, &[]).check_axes().is_err_and(|e| e.message.contains("too many")));
    }
}
