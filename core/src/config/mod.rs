//! Typed configurations, merged from layers, with the origin of every value.
//!
//! Layers, lowest first: built-in defaults; files listed in `extends` (recursively, relative to the file that lists
//! them); the file itself; environment variables (`CDL_OPTIMIZER__LR=0.01`); `--set key=value`. A layer that gives a
//! section another `name` replaces the whole section: no setting of the previous plugin remains.

mod config_layers;
mod draft;
mod keys;
mod run_config;

use std::{
    fmt::Display,
    path::{Path, PathBuf},
};

use figment::Figment;

pub use self::{
    config_layers::{ConfigLayers, UnknownVariable, unknown_variables},
    draft::Draft,
    run_config::{
        CheckpointConfig, DistillerSection, LearnerOverride, NetworkSection, RecordConfig, RunConfig, Section,
    },
};
use crate::{
    config::{
        config_layers::origin,
        keys::{common_keys, unknown_key},
    },
    error::{Error, Result, nearest},
    registry::{self, Kind, Settings, dynamic, leaves, ranges},
    traits::Role,
};

/// Treatment of a method that is not registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unregistered {
    /// The name is an error, since no run is possible.
    Refused,
    /// The settings of the method stay as written.
    AsWritten,
}

/// A configuration with the origin of every value.
#[derive(Debug, Clone)]
pub struct Config {
    /// Typed values, with the defaults of every plugin.
    pub run: RunConfig,
    /// Files that were read, lowest layer first.
    pub files: Vec<PathBuf>,
    layers: Figment,
}

impl Config {
    /// Reads `files`, the environment and `sets` (`key=value` each). Later files override earlier files and the files
    /// that these extend. Plugins listed under `plugins` must be loaded first, see [`ConfigLayers::plugins`].
    ///
    /// # Errors
    /// Files that cannot be read, unknown keys or names, values of the wrong type; each with its origin.
    pub fn load<P: AsRef<Path>>(files: &[P], sets: &[String]) -> Result<Self> {
        ConfigLayers::read(files, sets).draft().into_config()
    }

    /// Reads a configuration from `text`, the environment and `sets`. `name` is the origin of the text in messages. The
    /// text cannot extend files.
    ///
    /// # Errors
    /// Errors of [`Config::load`].
    pub fn parse(name: &str, text: &str, sets: &[String]) -> Result<Self> {
        ConfigLayers::parse(name, text, sets).draft().into_config()
    }

    /// Reads the configuration that a run has recorded in `file`. Environment variables are ignored.
    pub fn recorded(file: &Path, text: &str) -> Result<Self> {
        ConfigLayers::recorded(file, text).draft().into_config()
    }

    /// Reads a recorded configuration for inspection only: the settings of methods that are not registered stay as
    /// recorded. Reading the results of a run therefore neither loads the run's plugins nor runs their code.
    pub fn recorded_without_plugins(file: &Path, text: &str) -> Result<Self> {
        ConfigLayers::recorded(file, text).draft_without_plugins().into_config()
    }

    /// Returns a name for runs of this configuration, made of its file names.
    pub fn name(&self) -> String {
        let stems = self.files.iter().filter_map(|file| file.file_stem());
        stems.map(|stem| stem.to_string_lossy().into_owned()).collect::<Vec<_>>().join("-")
    }

    /// Returns the origin of the value at the dotted key `key`: a file, a variable, an option, or `default`.
    pub fn origin(&self, key: &str) -> String {
        self.explicit_origin(key).unwrap_or_else(|| "default".into())
    }

    /// Returns the origin of the value at `key`, if the value was set. `[teacher.learner]` and `[student.learner]`
    /// inherit the values that they do not set from `[learner]`.
    fn explicit_origin(&self, key: &str) -> Option<String> {
        let inherited = || {
            let (role, rest) = key.split_once('.')?;
            let role = [Role::Teacher, Role::Student].into_iter().find(|r| r.as_str() == role)?;
            let same = self.run.learner(role).0.name == self.run.learner.name;
            (same && rest.starts_with("learner.")).then(|| origin(&self.layers, rest))?
        };
        origin(&self.layers, key).or_else(inherited)
    }

    /// Returns every value as `(dotted key, value, origin)`, in order.
    pub fn explain(&self) -> Result<Vec<(String, String, String)>> {
        let table = self.to_table()?;
        let row = |(key, value): (String, &toml::Value)| {
            let origin = self.origin(&key);
            (key, value.to_string(), origin)
        };
        Ok(leaves(&table).into_iter().map(row).collect())
    }

    /// Returns the whole configuration as TOML. A run of this TOML repeats the run.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(&self.to_table()?)
            .map_err(|e| Error::Config { origin: "configuration".into(), reason: e.to_string() })
    }

    /// Returns the error of an invalid value of a key that belongs to no plugin.
    pub(crate) fn refused(&self, key: &str, value: impl Display, expected: impl Into<String>) -> Error {
        let (origin, value, expected) = (self.origin(key), value.to_string(), expected.into());
        Error::Setting { origin, key: key.into(), value, expected }
    }

    /// Adds section and origin to an error about a plugin's setting.
    pub fn locate(&self, section: &str, error: Error) -> Error {
        let place = |key: String| {
            let key = format!("{section}.{key}");
            // For one of several distillers, `distillers[0]`, only the whole list has an origin.
            let list = section.split('[').next().unwrap_or(section);
            let origin = self
                .explicit_origin(&key)
                .or_else(|| origin(&self.layers, list))
                .unwrap_or_else(|| "default".into());
            (key, origin)
        };
        match error {
            Error::Setting { key, value, expected, .. } => {
                let (key, origin) = place(key);
                Error::Setting { origin, key, value, expected }
            }
            Error::UnknownKey { key: own, nearest: mut near, mut known, .. } => {
                let (key, origin) = place(own.clone());
                // Sections of this kind also accept some keys for every plugin.
                if !own.contains('.') {
                    known.extend(common_keys(section));
                    near = nearest(&own, known.iter().map(String::as_str));
                }
                unknown_key(origin, key, near, known)
            }
            Error::UnknownName { ref name, .. } => {
                let value = format!("{name:?}");
                let (key, origin) = place("name".into());
                Error::Setting { origin, key, value, expected: error.to_string() }
            }
            other => other,
        }
    }

    /// Returns the error of a method that is not registered. The error names the listed plugins that are not loaded,
    /// since one of them may contain the method.
    fn unregistered(&self, section: &str, error: Error) -> Error {
        let missing = self.run.plugins.iter().filter(|file| !is_loaded(file));
        let missing: Vec<String> = missing.map(|file| file.display().to_string()).collect();
        match self.locate(section, error) {
            Error::Setting { origin, key, value, expected } if !missing.is_empty() => {
                let expected =
                    format!("{expected}; not loaded, although `plugins` lists it: {}", missing.join(", "));
                Error::Setting { origin, key, value, expected }
            }
            error => error,
        }
    }

    /// Returns the configuration without the listed plugins that are not loaded, for the record of a run: a run that
    /// was started without plugins does not need them.
    pub(crate) fn with_loaded_plugins(&self) -> Self {
        let mut config = self.clone();
        config.run.plugins.retain(|file| is_loaded(file));
        config
    }

    fn to_table(&self) -> Result<Settings> {
        Settings::try_from(&self.run)
            .map_err(|e| Error::Config { origin: "configuration".into(), reason: e.to_string() })
    }

    /// Fills in the defaults of every plugin's settings and checks what the types cannot express. Returns all errors.
    fn complete(&mut self, unregistered: Unregistered) -> Vec<Error> {
        let mut run = self.run.clone();
        let mut errors = Vec::new();
        // Every invalid key is removed, so that the keys after it are checked as well.
        let mut complete = |section: &str, kind: Kind, name: &str, settings: &mut Settings| {
            let entry = match registry::find(kind, name) {
                Ok(entry) => entry,
                Err(_) if unregistered == Unregistered::AsWritten => return,
                Err(error) => return errors.push(self.unregistered(section, error)),
            };
            loop {
                match (entry.complete)(settings) {
                    Ok(all) => return *settings = all,
                    Err(error) => {
                        let removed = error.key().is_some_and(|key| draft::remove(settings, key));
                        errors.push(self.locate(section, error));
                        if !removed || errors.len() >= draft::MAX_ERRORS {
                            return;
                        }
                    }
                }
            }
        };
        complete("stream", Kind::Stream, &run.stream.name, &mut run.stream.settings);
        complete("learner", Kind::Learner, &run.learner.name, &mut run.learner.settings);
        for role in [Role::Teacher, Role::Student] {
            let (mut learner, section) = run.learner(role);
            let network = match role {
                Role::Teacher => &mut run.teacher,
                Role::Student => &mut run.student,
            };
            complete(role.as_str(), Kind::Backbone, &network.name, &mut network.settings);
            if let Some(own) = &mut network.learner {
                complete(&section, Kind::Learner, &learner.name, &mut learner.settings);
                own.settings = learner.settings;
                own.name = Some(learner.name);
            }
        }
        let section = |index: usize| self.run.distiller_section(index);
        let distillers = run.distiller.iter_mut().chain(run.distillers.iter_mut().flatten());
        for (index, distiller) in distillers.enumerate() {
            complete(&section(index), Kind::Distiller, &distiller.name, &mut distiller.settings);
        }
        for (index, distiller) in run.distillers().iter().enumerate() {
            let valid = ranges::non_negative("weight", distiller.weight);
            errors.extend(valid.err().map(|error| self.locate(&section(index), error)));
        }
        if run.roles().is_empty() {
            let expected = "`train_teacher` is false too; expected at least one of them to be true";
            errors.push(self.refused("train_student", false, expected));
        }
        // Plugins loaded without being listed (`--plugin`) are added, so that the configuration repeats the run.
        for loaded in run.loaded_plugins() {
            let same = |file: &PathBuf| file.canonicalize().is_ok_and(|file| file == loaded.file);
            if !run.plugins.iter().any(same) {
                run.plugins.push(loaded.file);
            }
        }
        run.query = Some(run.query_source());
        for (key, value) in [("epochs", run.epochs), ("batch_size", run.batch_size)] {
            if value == 0 {
                errors.push(self.refused(key, 0, "expected at least 1"));
            }
        }
        let valid = [
            ("optimizer", run.optimizer.validate()),
            ("schedule", run.schedule.validate()),
            ("checkpoint", run.checkpoint.validate()),
        ];
        for (section, valid) in valid {
            errors.extend(valid.err().map(|error| self.locate(section, error)));
        }
        run.schedule.repeat_first_rate = Some(run.schedule.repeats_first_rate(run.mode));
        self.run = run;
        errors
    }
}
/// Returns whether a plugin file is loaded.
fn is_loaded(file: &Path) -> bool {
    file.canonicalize().is_ok_and(|file| dynamic::loaded().iter().any(|loaded| loaded.file == file))
}
