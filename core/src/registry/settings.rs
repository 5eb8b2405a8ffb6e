//! Conversion of a plugin's settings to their type, with errors that contain the key and the nearest valid key.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};

use crate::error::{Error, Result, nearest, types_in_words};

/// Settings of a plugin as written in a configuration, without its `name`.
pub type Settings = toml::Table;

/// Returns the JSON schema of a settings type.
pub fn schema_of<C: JsonSchema>() -> serde_json::Value {
    schemars::schema_for!(C).to_value()
}

/// Returns the defaults of a settings type as a table.
pub fn defaults_of<C: Default + Serialize>() -> Result<Settings> {
    to_table(&C::default())
}

/// Checks settings and fills in the defaults.
///
/// # Errors
/// Errors of [`parse`].
pub fn complete<C: DeserializeOwned + JsonSchema + Serialize>(settings: &Settings) -> Result<Settings> {
    to_table(&parse::<C>(settings)?)
}

fn to_table(value: &impl Serialize) -> Result<Settings> {
    Settings::try_from(value).map_err(|e| Error::Config {
        origin: "settings".into(),
        reason: format!("cannot be written as TOML: {e}"),
    })
}

/// Converts settings to their type.
///
/// # Errors
/// Unknown keys and invalid values. The error contains the key.
pub fn parse<C: DeserializeOwned + JsonSchema>(settings: &Settings) -> Result<C> {
    check_keys(&schema_of::<C>(), settings)?;
    serde_path_to_error::deserialize(toml::Value::Table(settings.clone())).map_err(|e| {
        // Inside flattened structs serde loses the path. The invalid key is then the key without which parsing
        // succeeds.
        let key = Some(e.path().to_string()).filter(|key| lookup(settings, key).is_some());
        let reason = e.into_inner().to_string();
        let reason = types_in_words(reason.lines().next().unwrap_or_default());
        match key.or_else(|| invalid_key(settings, &|rest| C::deserialize(toml::Value::Table(rest)).is_ok()))
        {
            Some(key) => {
                let value = lookup(settings, &key).map(|v| v.to_string()).unwrap_or_default();
                Error::setting(&key, value, reason)
            }
            None => Error::Config { origin: "configuration".into(), reason },
        }
    })
}

/// Returns the dotted key without which `is_valid` accepts the table.
fn invalid_key(table: &Settings, is_valid: &dyn Fn(Settings) -> bool) -> Option<String> {
    let without = |key: &String| {
        let mut rest = table.clone();
        rest.remove(key);
        rest
    };
    let key = table.keys().find(|key| is_valid(without(key)))?;
    let inner = table[key].as_table().and_then(|inner| {
        invalid_key(inner, &|rest| {
            let mut all = table.clone();
            all.insert(key.clone(), toml::Value::Table(rest));
            is_valid(all)
        })
    });
    Some(inner.map_or_else(|| key.clone(), |inner| format!("{key}.{inner}")))
}

/// Returns the value at a dotted key.
pub(crate) fn lookup<'a>(table: &'a Settings, key: &str) -> Option<&'a toml::Value> {
    let (first, rest) = key.split_once('.').map_or((key, None), |(first, rest)| (first, Some(rest)));
    match (table.get(first)?, rest) {
        (value, None) => Some(value),
        (toml::Value::Table(table), Some(rest)) => lookup(table, rest),
        _ => None,
    }
}

/// Returns every value of a table that is not itself a table, with its dotted key, in order.
pub(crate) fn leaves(table: &Settings) -> Vec<(String, &toml::Value)> {
    let mut all = Vec::new();
    for (key, value) in table {
        match value {
            toml::Value::Table(inner) => {
                let inner = leaves(inner).into_iter();
                all.extend(inner.map(|(rest, value)| (format!("{key}.{rest}"), value)));
            }
            value => all.push((key.clone(), value)),
        }
    }
    all
}

/// Checks that `schema` defines all keys of `table`, at any depth. The error contains the nearest valid key.
pub(crate) fn check_keys(schema: &serde_json::Value, table: &Settings) -> Result<()> {
    check_below(schema, schema, table, "")
}

/// Checks the table at the key `path`. `schema` is the part of the schema `root` that describes this table.
fn check_below(
    root: &serde_json::Value,
    schema: &serde_json::Value,
    table: &Settings,
    path: &str,
) -> Result<()> {
    let mut known: BTreeSet<&str> = BTreeSet::new();
    let mut open = false;
    let mut parts = vec![schema];
    let mut properties = Vec::new();
    while let Some(part) = parts.pop() {
        if let Some(reference) = part.get("$ref").and_then(|r| r.as_str()) {
            parts.extend(root.pointer(reference.trim_start_matches('#')));
        }
        for list in ["allOf", "anyOf", "oneOf"] {
            parts.extend(part.get(list).and_then(|l| l.as_array()).into_iter().flatten());
        }
        if let Some(map) = part.get("properties").and_then(|p| p.as_object()) {
            known.extend(map.keys().map(String::as_str));
            properties.push(map);
        }
        open |= part.get("additionalProperties").is_some_and(|a| a != &serde_json::Value::Bool(false));
    }
    for (key, value) in table {
        let full = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        if !known.contains(key.as_str()) {
            if open {
                continue;
            }
            return Err(Error::UnknownKey {
                origin: "configuration".into(),
                key: full,
                nearest: nearest(key, known.iter().copied()),
                known: known.into_iter().map(String::from).collect(),
            });
        }
        if let toml::Value::Table(inner) = value {
            for schema in properties.iter().filter_map(|map| map.get(key)) {
                check_below(root, schema, inner, &full)?;
            }
        }
    }
    Ok(())
}
