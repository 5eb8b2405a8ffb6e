//! A configuration read as far as it can be: everything that is wrong with it at once.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use crate::registry::lookup;
use crate::{
    config::{
        Config, Unregistered,
        keys::{check_run_keys, misplaced, parse_run},
        layers::{environment, merge, read_file, split_set},
    },
    error::Error,
    registry::Settings,
};

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

impl Draft {
    /// Reads as [`Config::load`] does, and goes on after a mistake.
    pub fn load<P: AsRef<Path>>(files: &[P], sets: &[String]) -> Self {
        let mut draft = Self { config: None, mistakes: Vec::new(), faulty: BTreeSet::new() };
        let files: Vec<PathBuf> = files.iter().map(|file| file.as_ref().to_path_buf()).collect();
        let mut layers = Vec::new();
        for file in &files {
            draft.mistakes.extend(read_file(file, &mut Vec::new(), &mut layers).err());
        }
        let whole = draft.mistakes.is_empty();
        match environment() {
            Ok(more) => layers.extend(more),
            Err(error) => draft.mistakes.push(error),
        }
        for set in sets {
            match split_set(set) {
                Ok(layer) => layers.push(layer),
                Err(error) => draft.mistakes.push(error),
            }
        }
        // Without one of the files, what the others lack would be reported in its place.
        if !whole {
            return draft;
        }
        let origin = files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ");
        let unreadable = |reason: String| Error::Config { origin: origin.clone(), reason };
        let read = merge(layers).and_then(|layers| {
            let table: Settings = layers.extract().map_err(|e| unreadable(e.to_string()))?;
            Ok((layers, table))
        });
        let (layers, mut table) = match read {
            Ok(read) => read,
            Err(error) => {
                draft.mistakes.push(error);
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
        for (section, error) in config.complete(Unregistered::Refused) {
            draft.faulty.insert(section);
            draft.mistakes.push(error);
        }
        draft.config = Some(config);
        draft
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
