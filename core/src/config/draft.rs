//! Checks of a configuration that report all errors at once.

use std::path::PathBuf;

use figment::Figment;

use crate::{
    config::{
        Config, Unregistered,
        config_layers::{self, ConfigLayers},
        keys::parse_run,
    },
    error::{Error, Result},
    registry::Settings,
};

/// Number of errors after which collecting stops: each error takes another check of the whole configuration.
pub(super) const MAX_ERRORS: usize = 50;

/// Configuration with all its errors.
#[derive(Debug)]
pub struct Draft {
    /// Configuration without the invalid values, so that the rest can be checked. `None` if a file cannot be read, a
    /// required section is invalid, or the search for errors stopped early.
    pub config: Option<Config>,
    /// Errors found. The search stops after the first 50.
    pub errors: Vec<Error>,
}

impl ConfigLayers {
    /// Reads and checks the configuration of these layers.
    pub fn draft(self) -> Draft {
        self.draft_with(Unregistered::Refused)
    }

    /// Reads and checks the configuration. Settings of methods that are not registered are not checked and stay as
    /// written, so that commands that build no methods need not load their plugins.
    pub fn draft_without_plugins(self) -> Draft {
        self.draft_with(Unregistered::AsWritten)
    }

    pub(super) fn draft_with(self, unregistered: Unregistered) -> Draft {
        let (layers, complete) = (self.merged(None), self.file_layers.len() == self.files.len());
        let mut errors = self.errors;
        // If a file is missing, its keys would be reported as missing too.
        let read = if complete { read(layers, self.files, &mut errors) } else { None };
        let config = read.map(|mut config| {
            errors.extend(config.complete(unregistered));
            config
        });
        Draft { config, errors }
    }
}

impl Draft {
    /// Returns the configuration, or the first of [`Draft::errors`].
    pub fn into_config(self) -> Result<Config> {
        match (self.errors.into_iter().next(), self.config) {
            (None, Some(config)) => Ok(config),
            (Some(error), _) => Err(error),
            (None, None) => Err(Error::Config { origin: "configuration".into(), reason: "is empty".into() }),
        }
    }
}

/// Reads the keys of a run, without the invalid ones. `None` if a required key is invalid.
fn read(layers: Figment, files: Vec<PathBuf>, errors: &mut Vec<Error>) -> Option<Config> {
    let origin = files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ");
    let mut table: Settings = match layers.extract() {
        Ok(table) => table,
        Err(error) => {
            let key = error.path.join(".");
            let origin = config_layers::origin(&layers, &key).unwrap_or(origin);
            // Whole numbers of TOML are signed 64-bit numbers; --set and the environment accept larger ones.
            let number = layers.find_value(&key).ok().and_then(|value| value.to_u128());
            errors.push(match number {
                Some(number) => {
                    let expected = "expected a number below 2^63".to_string();
                    Error::Setting { origin, key, value: number.to_string(), expected }
                }
                None => Error::Config { origin, reason: error.to_string() },
            });
            return None;
        }
    };
    loop {
        match parse_run(&table, &layers, &origin) {
            Ok(run) => return Some(Config { run, files, layers }),
            Err((key, error)) => {
                errors.push(error);
                if errors.len() >= MAX_ERRORS {
                    return None;
                }
                // Sections that every run requires.
                let needed = ["stream", "teacher", "student", "learner", "distiller"];
                let key = key.filter(|key| !needed.contains(&key.strip_suffix(".name").unwrap_or(key)))?;
                remove(&mut table, &key).then_some(())?;
            }
        }
    }
}

/// Removes the value at a dotted key. Returns whether it existed.
pub(super) fn remove(table: &mut Settings, key: &str) -> bool {
    match key.split_once('.') {
        None => table.remove(key).is_some(),
        Some((first, rest)) => {
            table.get_mut(first).and_then(toml::Value::as_table_mut).is_some_and(|inner| remove(inner, rest))
        }
    }
}
