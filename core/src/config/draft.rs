//! A configuration checked as far as it can be: everything that is wrong with it at once.

use std::path::PathBuf;

use figment::Figment;

use crate::{
    config::{Config, Unregistered, keys::parse_run, layers::Layers},
    error::{Error, Result},
    registry::{Settings, lookup},
};

/// A configuration and everything that is wrong with it.
#[derive(Debug)]
pub struct Draft {
    /// The configuration without the values that are refused, so that all else can be checked; `None` where too little
    /// is left.
    pub config: Option<Config>,
    /// Everything that is wrong; of several errors [`Layers::config`] returns the first.
    pub errors: Vec<Error>,
}

impl Layers {
    /// The configuration of these layers.
    ///
    /// # Errors
    /// Layers that could not be read, unknown keys or names, values of the wrong type; each with where it was written.
    pub fn config(&self) -> Result<Config> {
        self.draft().finish()
    }

    /// The configuration of these layers, to be looked at and not to be run: the settings of methods that are not
    /// registered stay as they were written. So nobody's library is loaded, and its code run, to read its results.
    ///
    /// # Errors
    /// As [`Layers::config`], but for names that are not known.
    pub fn config_without_plugins(&self) -> Result<Config> {
        self.drafted(Unregistered::AsWritten).finish()
    }

    /// The configuration of these layers, as far as it is valid.
    pub fn draft(&self) -> Draft {
        self.drafted(Unregistered::Refused)
    }

    fn drafted(&self, unregistered: Unregistered) -> Draft {
        let (mut errors, incomplete) = self.unread();
        // Without one of the files, what the others lack would be reported in its place.
        if incomplete {
            return Draft { config: None, errors };
        }
        let Draft { config, errors: more } = Draft::of(self.merged(None), &self.files, unregistered);
        errors.extend(more);
        Draft { config, errors }
    }
}

impl Draft {
    pub(super) fn of(layers: Figment, files: &[PathBuf], unregistered: Unregistered) -> Self {
        let mut errors = Vec::new();
        let config = read(layers, files, &mut errors).map(|mut config| {
            errors.extend(config.complete(unregistered));
            config
        });
        Self { config, errors }
    }

    /// The configuration, if nothing is wrong with it.
    ///
    /// # Errors
    /// The first of [`Draft::errors`].
    pub fn finish(self) -> Result<Config> {
        match (self.errors.into_iter().next(), self.config) {
            (None, Some(config)) => Ok(config),
            (Some(error), _) => Err(error),
            (None, None) => Err(Error::Config { origin: "configuration".into(), reason: "is empty".into() }),
        }
    }
}

/// Reads the keys of a run and leaves out those that are refused; `None` where no run can do without them.
fn read(layers: Figment, files: &[PathBuf], errors: &mut Vec<Error>) -> Option<Config> {
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
            Ok(run) => return Some(Config { run, files: files.into(), layers }),
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
    if lookup(table, key).is_none() {
        return false;
    }
    match key.split_once('.') {
        None => table.remove(key).is_some(),
        Some((first, rest)) => {
            table.get_mut(first).and_then(toml::Value::as_table_mut).is_some_and(|inner| remove(inner, rest))
        }
    }
}
