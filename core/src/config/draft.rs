//! A configuration read as far as it can be: everything that is wrong with it at once.

use std::collections::BTreeSet;

use super::{
    Config, ConfigLayers, Unregistered,
    keys::{check_run_keys, lookup, misplaced, parse_run},
};
use crate::{Error, Result, registry::Settings};

/// What could be read of a configuration.
#[derive(Debug)]
pub struct Draft {
    /// With the faulty values left out, so that all else can be looked at; `None` where too little is left.
    pub config: Option<Config>,
    /// Everything that [`Config::load`] would refuse.
    pub mistakes: Vec<Error>,
    /// Sections and top-level keys with a mistake: what they stand for is not what the user meant.
    pub faulty: BTreeSet<String>,
}

impl ConfigLayers {
    /// Builds the configuration as far as it can be, and goes on after an error.
    pub fn draft(self) -> Draft {
        self.draft_with(Unregistered::Refused)
    }

    pub(super) fn draft_with(self, unregistered: Unregistered) -> Draft {
        let layers = self.merged();
        let Self { files, errors: mistakes, whole, .. } = self;
        let mut draft = Draft { config: None, mistakes, faulty: BTreeSet::new() };
        // Without one of the files, what the others lack would be reported in its place.
        if !whole {
            return draft;
        }
        let origin = files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ");
        let mut table: Settings = match layers.extract() {
            Ok(table) => table,
            Err(e) => {
                draft.mistakes.push(Error::Config { origin, reason: e.to_string() });
                return draft;
            }
        };
        while let Err(error) = check_run_keys(&table) {
            let left_out = refused_key(&error).is_some_and(|key| draft.leave_out(&mut table, key));
            draft.mistakes.push(misplaced(error, &layers, &origin));
            if !left_out {
                return draft;
            }
        }
        let run = loop {
            match parse_run(&table, &layers, &origin) {
                Ok(run) => break run,
                Err(error) => {
                    let left_out = refused_key(&error).is_some_and(|key| draft.leave_out(&mut table, key));
                    draft.mistakes.push(error);
                    if !left_out {
                        return draft;
                    }
                }
            }
        };
        let mut config = Config { run, files, layers };
        for (section, error) in config.complete(unregistered) {
            draft.faulty.insert(section);
            draft.mistakes.push(error);
        }
        draft.config = Some(config);
        draft
    }
}

impl Draft {
    /// The configuration, if nothing is wrong with it.
    ///
    /// # Errors
    /// The first of the mistakes.
    pub fn into_config(self) -> Result<Config> {
        let missing = || Error::Config { origin: "configuration".into(), reason: "cannot be read".into() };
        match self.mistakes.into_iter().next() {
            Some(error) => Err(error),
            None => self.config.ok_or_else(missing),
        }
    }

    /// Takes a refused key out of the table; not where it is a section that no run can do without.
    fn leave_out(&mut self, table: &mut Settings, key: &str) -> bool {
        let section = key.split_once('.').map_or(key, |(section, _)| section);
        let needed = ["stream", "teacher", "student", "learner", "distiller"];
        let named = key.strip_suffix(".name").unwrap_or(key);
        if needed.contains(&named) {
            return false;
        }
        self.faulty.insert(section.into());
        remove(table, key)
    }
}

/// The key that an error is about.
pub(super) fn refused_key(error: &Error) -> Option<&str> {
    match error {
        Error::Setting { key, .. } | Error::UnknownKey { key, .. } => Some(key),
        _ => None,
    }
}

/// Takes the value at a dotted key away, if there is one.
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
