//! Configurations in layers, typed, with the origin of every value.
//!
//! Lowest to highest: built-in defaults, files named by `extends` (recursively, relative to the file that names them),
//! the file itself, `CDL_...` environment variables (`CDL_OPTIMIZER__LR=0.01`), `--set key=value`.
//! A layer that gives a section another `name` replaces the whole section: settings of the plugin before do not linger.

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
    registry::{self, Kind, Settings, leaves, ranges},
    traits::Role,
};

/// What becomes of the settings of a method that is not registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unregistered {
    /// They are an error: nothing could be run with them.
    Refused,
    /// They stay as they were written.
    AsWritten,
}

/// A configuration with the origin of every value.
#[derive(Debug, Clone)]
pub struct Config {
    /// Typed, with every plugin's defaults filled in.
    pub run: RunConfig,
    /// The files it was read from, the lowest layer first.
    pub files: Vec<PathBuf>,
    layers: Figment,
}

impl Config {
    /// Reads `files`, later ones over earlier ones and each with everything it extends, the environment and `sets`
    /// (`key=value` each). The plugins that they name have to be loaded before, see [`ConfigLayers::plugins`].
    ///
    /// # Errors
    /// Files that cannot be read, unknown keys or names, values of the wrong type; each with where it was written.
    pub fn load<P: AsRef<Path>>(files: &[P], sets: &[String]) -> Result<Self> {
        ConfigLayers::read(files, sets).draft().into_config()
    }

    /// Reads a text, which extends nothing; `name` stands for its file.
    pub fn parse(name: &str, text: &str, sets: &[String]) -> Result<Self> {
        ConfigLayers::parse(name, text, sets).draft().into_config()
    }

    /// Reads the configuration that a run has recorded in `file`, whatever the environment contains now.
    pub fn recorded(file: &Path, text: &str) -> Result<Self> {
        ConfigLayers::recorded(file, text).draft().into_config()
    }

    /// Reads a recorded configuration to be looked at and not to be run: the settings of methods that are not
    /// registered stay as they were recorded. So nobody's library is loaded, and its code run, to read its results.
    pub fn recorded_without_plugins(file: &Path, text: &str) -> Result<Self> {
        ConfigLayers::recorded(file, text).draft_with(Unregistered::AsWritten).into_config()
    }

    /// A name for runs of this configuration: those of its files.
    pub fn name(&self) -> String {
        let stems = self.files.iter().filter_map(|file| file.file_stem());
        stems.map(|stem| stem.to_string_lossy().into_owned()).collect::<Vec<_>>().join("-")
    }

    /// Where the value of `key` (dotted) was set, or `default`.
    pub fn origin(&self, key: &str) -> String {
        self.written(key).unwrap_or_else(|| "default".into())
    }

    /// Where the value of `key` was written, if it was; a network's own learner has from `[learner]` what it does not
    /// say itself.
    fn written(&self, key: &str) -> Option<String> {
        let inherited = || {
            let (role, rest) = key.split_once('.')?;
            let role = [Role::Teacher, Role::Student].into_iter().find(|r| r.as_str() == role)?;
            let same = self.run.learner(role).0.name == self.run.learner.name;
            (same && rest.starts_with("learner.")).then(|| origin(&self.layers, rest))?
        };
        origin(&self.layers, key).or_else(inherited)
    }

    /// Every value as `(dotted key, value, origin)`, in order.
    pub fn explain(&self) -> Result<Vec<(String, String, String)>> {
        let table = self.to_table()?;
        let row = |(key, value): (String, &toml::Value)| {
            let origin = self.origin(&key);
            (key, value.to_string(), origin)
        };
        Ok(leaves(&table).into_iter().map(row).collect())
    }

    /// The whole configuration as TOML; running it gives the same run.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(&self.to_table()?)
            .map_err(|e| Error::Config { origin: "configuration".into(), reason: e.to_string() })
    }

    /// Error of the value at a key that belongs to no plugin.
    pub(crate) fn refused(&self, key: &str, value: impl Display, expected: impl Into<String>) -> Error {
        let (origin, value, expected) = (self.origin(key), value.to_string(), expected.into());
        Error::Setting { origin, key: key.into(), value, expected }
    }

    /// Adds to an error about a plugin's setting which section it belongs to and where it was written.
    pub fn locate(&self, section: &str, error: Error) -> Error {
        let place = |key: String| {
            let key = format!("{section}.{key}");
            // Of one of several distillers, `distillers[0]`, the whole list has an origin.
            let list = section.split('[').next().unwrap_or(section);
            let origin =
                self.written(&key).or_else(|| origin(&self.layers, list)).unwrap_or_else(|| "default".into());
            (key, origin)
        };
        match error {
            Error::Setting { key, value, expected, .. } => {
                let (key, origin) = place(key);
                Error::Setting { origin, key, value, expected }
            }
            Error::UnknownKey { key: own, nearest: mut near, mut known, .. } => {
                let (key, origin) = place(own.clone());
                // What every plugin of this kind has besides its own settings.
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

    fn to_table(&self) -> Result<Settings> {
        Settings::try_from(&self.run)
            .map_err(|e| Error::Config { origin: "configuration".into(), reason: e.to_string() })
    }

    /// Fills in the defaults of every plugin's settings and checks what the types cannot. Returns everything that is
    /// wrong.
    fn complete(&mut self, unregistered: Unregistered) -> Vec<Error> {
        let mut run = self.run.clone();
        let mut wrong = Vec::new();
        // Every key that is refused is left out, so that those after it are looked at as well.
        let mut complete = |section: &str, kind: Kind, name: &str, settings: &mut Settings| {
            let entry = match registry::find(kind, name) {
                Ok(entry) => entry,
                Err(_) if unregistered == Unregistered::AsWritten => return,
                Err(error) => return wrong.push(self.locate(section, error)),
            };
            loop {
                match (entry.complete)(settings) {
                    Ok(all) => return *settings = all,
                    Err(error) => {
                        let left_out = error.key().is_some_and(|key| draft::remove(settings, key));
                        wrong.push(self.locate(section, error));
                        if !left_out {
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
        let place = |index: usize| self.run.distiller_place(index);
        let distillers = run.distiller.iter_mut().chain(run.distillers.iter_mut().flatten());
        for (index, distiller) in distillers.enumerate() {
            complete(&place(index), Kind::Distiller, &distiller.name, &mut distiller.settings);
        }
        for (index, distiller) in run.distillers().iter().enumerate() {
            let valid = ranges::non_negative("weight", distiller.weight);
            wrong.extend(valid.err().map(|error| self.locate(&place(index), error)));
        }
        if run.roles().is_empty() {
            let expected = "with `train_teacher = false` nothing is left to train";
            wrong.push(self.refused("train_student", false, expected));
        }
        // Those that were loaded in another way are written down, so that the configuration repeats the run.
        for loaded in run.loaded_plugins() {
            let same = |file: &PathBuf| file.canonicalize().is_ok_and(|file| file == loaded.file);
            if !run.plugins.iter().any(same) {
                run.plugins.push(loaded.file);
            }
        }
        run.query = Some(run.query_source());
        for (key, value) in [("epochs", run.epochs), ("batch_size", run.batch_size)] {
            if value == 0 {
                wrong.push(self.refused(key, 0, "expected at least 1"));
            }
        }
        let valid = [
            ("optimizer", run.optimizer.validate()),
            ("schedule", run.schedule.validate()),
            ("checkpoint", run.checkpoint.validate()),
        ];
        for (section, valid) in valid {
            wrong.extend(valid.err().map(|error| self.locate(section, error)));
        }
        run.schedule.repeat_first_rate = Some(run.schedule.repeats_first_rate(run.mode));
        self.run = run;
        wrong
    }
}
