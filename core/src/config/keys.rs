//! Checks of the keys of a configuration against the schemas of its types.

use figment::Figment;

use crate::{
    config::{
        DistillerSection, NetworkSection, RunConfig, Section,
        config_layers::{NAMED, origin},
    },
    error::{Error, Result, types_in_words},
    registry::{self, Settings, check_keys, lookup},
};

/// Returns the keys that a section accepts for every plugin.
pub(super) fn common_keys(section: &str) -> Vec<String> {
    let schema = match section.split('[').next() {
        Some("teacher" | "student") => registry::schema_of::<NetworkSection>(),
        Some("distiller" | "distillers") => registry::schema_of::<DistillerSection>(),
        _ => registry::schema_of::<Section>(),
    };
    let properties = schema.get("properties").and_then(|properties| properties.as_object());
    properties.into_iter().flat_map(|properties| properties.keys().cloned()).collect()
}

/// Returns the error of an unknown key. A top-level key in a section gets its own message: in TOML, a key below
/// `[section]` belongs to that section.
pub(super) fn unknown_key(origin: String, key: String, nearest: Option<String>, known: Vec<String>) -> Error {
    let top = registry::schema_of::<RunConfig>();
    match key.rsplit_once('.') {
        Some((section, name)) if top["properties"].get(name).is_some() => Error::Config {
            reason: format!(
                "`{name}` is in section [{section}] but is a top-level key: write it before the first [section]"
            ),
            origin,
        },
        _ => Error::UnknownKey { origin, key, nearest, known },
    }
}

/// Converts the keys of a run to their types. `files` is the origin of values that were not set. An error contains the
/// invalid key, if there is one.
pub(super) fn parse_run(
    table: &Settings,
    figment: &Figment,
    files: &str,
) -> Result<RunConfig, (Option<String>, Error)> {
    check_keys(&registry::schema_of::<RunConfig>(), table).map_err(|error| match error {
        Error::UnknownKey { key, nearest, known, .. } => {
            let origin = origin(figment, &key).unwrap_or_else(|| files.to_string());
            (Some(key.clone()), unknown_key(origin, key, nearest, known))
        }
        other => (None, other),
    })?;
    typed(table, figment, files).map_err(|error| (error.key().map(String::from), error))
}

fn typed(table: &Settings, figment: &Figment, files: &str) -> Result<RunConfig> {
    let fail = |reason: String| Error::Config { origin: files.into(), reason };
    let origin_of = |key: &str| origin(figment, key).unwrap_or_else(|| files.to_string());
    if table.contains_key("distillers") {
        if table.contains_key("distiller") {
            return Err(fail(
                "has both [distiller] and `distillers`; to change one of several distillers, write the whole list"
                    .into(),
            ));
        }
        let invalid = |expected: &str| Error::Setting {
            origin: origin_of("distillers"),
            key: "distillers".into(),
            value: table["distillers"].to_string(),
            expected: expected.into(),
        };
        let list = table["distillers"].as_array().filter(|list| !list.is_empty());
        let list = list.ok_or_else(|| {
            invalid("expected a list of at least one table, like `[{ name = \"...\" }, ...]`")
        })?;
        if let Some(at) = list.iter().position(|one| one.get("name").is_none()) {
            return Err(invalid(&format!(
                "expected a `name` in distillers[{at}]; `cdl list` shows all names"
            )));
        }
    }
    for section in NAMED.into_iter().chain(["checkpoint", "record"]) {
        if let Some(value) = lookup(table, section).filter(|value| !value.is_table()) {
            return Err(Error::Setting {
                origin: origin_of(section),
                key: section.into(),
                value: value.to_string(),
                expected: format!("expected a section; `{section}.name` sets its name"),
            });
        }
    }
    for section in ["stream", "teacher", "student", "learner", "distiller"] {
        match table.get(section) {
            None if section == "distiller" && table.contains_key("distillers") => {}
            None => {
                return Err(fail(format!(
                    "section [{section}] is missing; a file that only changes settings must follow a complete \
                     configuration, as in `cdl run configs/quickstart.toml FILE`"
                )));
            }
            Some(toml::Value::Table(t))
                if !t.contains_key("name") && !["teacher", "student"].contains(&section) =>
            {
                return Err(fail(format!("[{section}] has no `name`; `cdl list` shows all names")));
            }
            Some(_) => {}
        }
    }
    serde_path_to_error::deserialize(toml::Value::Table(table.clone())).map_err(|e| {
        let key = e.path().to_string();
        let reason = e.into_inner().to_string();
        let reason = types_in_words(reason.lines().next().unwrap_or_default());
        let value = lookup(table, &key).map(|v| v.to_string()).unwrap_or_default();
        Error::Setting { origin: origin_of(&key), key, value, expected: reason }
    })
}
