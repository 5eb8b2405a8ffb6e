//! A configuration checked as far as it can be: everything that is wrong with it at once.

use std::path::PathBuf;

use figment::Figment;

use crate::{
    config::{Config, Unregistered, config_layers::ConfigLayers, keys::parse_run},
    error::{Error, Result},
    registry::Settings,
};

/// A configuration and everything that is wrong with it.
#[derive(Debug)]
pub struct Draft {
    /// The configuration without the values that are refused, so that all else can be checked; `None` where too little
    /// is left.
    pub config: Option<Config>,
    /// Everything that is wrong.
    pub errors: Vec<Error>,
}

impl ConfigLayers {
    /// The configuration of these layers, as far as it is valid.
    pub fn draft(self) -> Draft {
        self.draft_with(Unregistered::Refused)
    }

    pub(super) fn draft_with(self, unregistered: Unregistered) -> Draft {
        let (layers, complete) = (self.merged(None), self.of_files.len() == self.files.len());
        let mut errors = self.errors;
        // Without one of the files, what the others lack would be reported in its place.
        let read = if complete { read(layers, self.files, &mut errors) } else { None };
        let config = read.map(|mut config| {
            errors.extend(config.complete(unregistered));
            config
        });
        Draft { config, errors }
    }
}

impl Draft {
    /// The configuration, or the first of [`Draft::errors`].
    pub fn into_config(self) -> Result<Config> {
        match (self.errors.into_iter().next(), self.config) {
            (None, Some(config)) => Ok(config),
            (Some(error), _) => Err(error),
            (None, None) => Err(Error::Config { origin: "configuration".into(), reason: "is empty".into() }),
        }
    }
}

/// Reads the keys of a run and leaves out those that are refused; `None` where no run can do without them.
fn read(layers: Figment, files: Vec<PathBuf>, errors: &mut Vec<Error>) -> Option<Config> {
    let origin = files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ");
    let mut table: Settings = match layers.extract() {
        Ok(table) => table,
        Err(error) => {
            errors.push(Error::Config { origin, reason: error.to_string() });
            return None;
        }
    };
    loop {
        match parse_run(&table, &layers, &origin) {
            Ok(run) => return Some(Config { run, files, layers }),
            Err((key, error)) => {
                errors.push(error);
                // The sections that no run can do without.
                let needed = ["stream", "teacher", "student", "learner", "distiller"];
                let key = key.filter(|key| !needed.contains(&key.strip_suffix(".name").unwrap_or(key)))?;
                remove(&mut table, &key).then_some(())?;
            }
        }
    }
}

/// Removes the value at a dotted key; whether there was one.
pub(super) fn remove(table: &mut Settings, key: &str) -> bool {
    match key.split_once('.') {
        None => table.remove(key).is_some(),
        Some((first, rest)) => {
            table.get_mut(first).and_then(toml::Value::as_table_mut).is_some_and(|inner| remove(inner, rest))
        }
    }
}
