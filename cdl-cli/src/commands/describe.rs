//! `cdl describe`: settings of methods and keys of sections.

use cdl_core::{
    config::{CheckpointConfig, DistillerSection, RecordConfig, RunConfig},
    error::{Error, nearest},
    registry::{Entry, Kind, Settings, defaults_of, entries, schema_of},
    train::{EpochReport, OptimizerConfig, ScheduleConfig},
};
use serde_json::{Value, json};

use crate::{
    failure::Failure,
    plugin::loading,
    terminal::{emit, emit_json},
};

/// Sections that do not belong to a plugin.
const SECTIONS: [&str; 6] = ["run", "optimizer", "schedule", "checkpoint", "record", "metrics"];

/// Describes all plugins with this name, or the section, as text or as JSON.
pub fn describe(name: &str, as_json: bool) -> Result<(), Failure> {
    if SECTIONS.contains(&name) {
        return section(name, as_json);
    }
    let mut all = Vec::new();
    for kind in Kind::ALL {
        all.extend(entries(kind)?);
    }
    let found: Vec<&Entry> = all.iter().copied().filter(|entry| entry.name == name).collect();
    if found.is_empty() {
        let schema = schema_of::<RunConfig>();
        let keys = schema["properties"].as_object().into_iter().flat_map(|keys| keys.keys());
        if keys.clone().any(|key| key == name) {
            return key(name, schema, as_json);
        }
        let names = all.iter().map(|entry| entry.name).chain(SECTIONS);
        let keys = keys.filter(|key| !SECTIONS.contains(&key.as_str())).cloned();
        let known: Vec<String> = names.map(String::from).chain(keys).collect();
        let nearest = nearest(name, known.iter().map(String::as_str));
        return Err(
            Error::UnknownName { kind: "method, section or key", name: name.into(), nearest, known }.into()
        );
    }
    if as_json {
        let one = |entry: &&Entry| -> Result<Value, Failure> {
            Ok(json!({
                "kind": entry.build.kind().as_str(),
                "name": entry.name,
                "about": entry.about,
                "citation": entry.citation,
                "data": entry.source,
                "registered_by": entry.origin,
                "file": loading::origin(entry),
                "defaults": (entry.defaults)()?,
                "schema": (entry.schema)(),
            }))
        };
        return emit_json(&found.iter().map(one).collect::<Result<Vec<Value>, Failure>>()?);
    }
    let mut text = String::new();
    for entry in found {
        text += &format!("{} ({})\n  {}\n", entry.name, entry.build.kind(), entry.about);
        if !entry.citation.is_empty() {
            text += &format!("  {}\n", entry.citation);
        }
        let origin = loading::origin(entry).map(|origin| format!(", {origin}")).unwrap_or_default();
        text += &entry.source.map(|source| format!("  data: {source}\n")).unwrap_or_default();
        text += &format!("  registered by {}{origin}\n\n", entry.origin);
        let schema = (entry.schema)();
        let before = text.len();
        write_fields(&mut text, &schema, &schema, &(entry.defaults)()?, "");
        if text.len() == before {
            text += "  no settings of its own\n";
        }
        if entry.build.kind() == Kind::Distiller {
            let mut schema = schema_of::<DistillerSection>();
            if let Some(properties) = schema["properties"].as_object_mut() {
                properties.remove("name");
            }
            text += "\n  settings of every distiller:\n";
            write_fields(&mut text, &schema, &schema, &Settings::new(), "");
        }
        text.push('\n');
    }
    emit(&text)
}

/// Describes one top-level key of a configuration, whose schema is `schema`.
fn key(name: &str, mut schema: Value, as_json: bool) -> Result<(), Failure> {
    if let Some(properties) = schema["properties"].as_object_mut() {
        properties.retain(|key, _| key == name);
    }
    if as_json {
        return emit_json(&json!({ "name": name, "schema": schema }));
    }
    let mut text = String::from("top-level key of a configuration\n\n");
    write_fields(&mut text, &schema, &schema, &Settings::new(), "");
    emit(&text)
}

/// Describes one of [`SECTIONS`]; `run` stands for the top-level keys of a configuration.
fn section(name: &str, as_json: bool) -> Result<(), Failure> {
    let (title, schema, defaults) = match name {
        "optimizer" => ("[optimizer]", schema_of::<OptimizerConfig>(), defaults_of::<OptimizerConfig>()?),
        "schedule" => ("[schedule]", schema_of::<ScheduleConfig>(), defaults_of::<ScheduleConfig>()?),
        "checkpoint" => ("[checkpoint]", schema_of::<CheckpointConfig>(), defaults_of::<CheckpointConfig>()?),
        "record" => ("[record]", schema_of::<RecordConfig>(), defaults_of::<RecordConfig>()?),
        "metrics" => {
            ("metrics: fields of a line of metrics.jsonl", schema_of::<EpochReport>(), Settings::new())
        }
        _ => ("run: top-level keys of a configuration", schema_of::<RunConfig>(), Settings::new()),
    };
    if as_json {
        return emit_json(&json!({ "name": name, "defaults": defaults, "schema": schema }));
    }
    let mut text = format!("{title}\n\n");
    write_fields(&mut text, &schema, &schema, &defaults, "");
    emit(&text)
}

/// Writes the properties of an object schema. Those of nested objects get dotted names.
fn write_fields(text: &mut String, root: &Value, schema: &Value, defaults: &Settings, prefix: &str) {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return };
    for (name, field) in properties {
        let target = resolve(root, field);
        if target.get("properties").is_some() {
            let inner = defaults.get(name).and_then(|value| value.as_table()).cloned().unwrap_or_default();
            write_fields(text, root, target, &inner, &format!("{prefix}{name}."));
            continue;
        }
        let default = match (defaults.get(name), field.get("default")) {
            (Some(value), _) => format!(" = {value}"),
            (None, Some(value)) if !value.is_object() && !value.is_null() => format!(" = {value}"),
            _ => String::new(),
        };
        *text += &format!("  {prefix}{name}: {}{default}\n", type_name(root, field));
        let docs = field.get("description").or_else(|| target.get("description"));
        for line in docs.and_then(Value::as_str).unwrap_or_default().lines() {
            *text += &format!("      {line}\n");
        }
    }
}

/// Resolves a reference, also one in an `allOf` with a single entry.
fn resolve<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    let reference = schema.get("$ref").or_else(|| schema.pointer("/allOf/0/$ref")).and_then(Value::as_str);
    match reference.and_then(|reference| root.pointer(reference.trim_start_matches('#'))) {
        Some(target) => resolve(root, target),
        None => schema,
    }
}

/// Describes a type: `integer`, `"fixed" | "shuffled"`, `list of number`.
fn type_name(root: &Value, schema: &Value) -> String {
    let schema = resolve(root, schema);
    let list = |key: &str| schema.get(key).and_then(Value::as_array);
    let of = |name: &Value| match name.as_str() {
        Some("array") => {
            format!("list of {}", schema.get("items").map_or("anything".into(), |s| type_name(root, s)))
        }
        name => name.unwrap_or("anything").into(),
    };
    let names: Vec<String> = if let Some(choices) = list("anyOf").or_else(|| list("oneOf")) {
        choices.iter().map(|choice| type_name(root, choice)).collect()
    } else if let Some(values) = list("enum") {
        values.iter().map(Value::to_string).collect()
    } else if let Some(names) = list("type") {
        names.iter().map(of).collect()
    } else {
        return schema.get("const").map_or_else(|| of(&schema["type"]), Value::to_string);
    };
    names.into_iter().filter(|name| name != "null").collect::<Vec<_>>().join(" | ")
}
