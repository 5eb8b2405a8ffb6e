//! `cdl schema`: JSON Schema of configuration files, for completion and checks in editors.

use cdl_core::{
    config::{DistillerSection, LearnerOverride, NetworkSection, RunConfig, Section},
    error::Error,
    registry::{Kind, entries, schema_of},
};
use serde_json::{Map, Value, json};

use crate::{failure::Failure, terminal::emit_json};

/// Prints the schema, with the settings of every registered plugin.
pub fn schema() -> Result<(), Failure> {
    let mut schema = schema_of::<RunConfig>();
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["title"] = json!("cdl configuration");
    // A file may be one of several layers, so no section is required.
    schema.as_object_mut().and_then(|schema| schema.remove("required"));
    schema["properties"]["extends"] = json!({
        "description": "Configuration files that this file extends and overrides. Paths are relative to this file.",
        "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }],
    });
    schema["additionalProperties"] = json!(false);
    let sections = [
        ("stream", Kind::Stream, schema_of::<Section>()),
        ("learner", Kind::Learner, schema_of::<Section>()),
        ("distiller", Kind::Distiller, schema_of::<DistillerSection>()),
        ("teacher", Kind::Backbone, schema_of::<NetworkSection>()),
        ("student", Kind::Backbone, schema_of::<NetworkSection>()),
    ];
    for (name, kind, common) in sections {
        let mut section = section(&mut schema, kind, &common)?;
        if kind == Kind::Backbone {
            section["properties"]["learner"] =
                self::section(&mut schema, Kind::Learner, &schema_of::<LearnerOverride>())?;
        }
        if kind == Kind::Distiller {
            schema["properties"]["distillers"] = json!({ "type": "array", "minItems": 1, "items": section });
        }
        schema["properties"][name] = section;
    }
    emit_json(&schema)
}

/// Schema of a section for a plugin of `kind`: the keys of `common` and those of the named plugin. A section without a
/// `name` changes settings of a lower layer, so it accepts the keys of every plugin.
fn section(root: &mut Value, kind: Kind, common: &Value) -> Result<Value, Error> {
    let common = common["properties"].as_object().cloned().unwrap_or_default();
    let mut names = Vec::new();
    let (mut any, mut choices) = (common.clone(), Vec::new());
    for entry in entries(kind)? {
        let mut own = (entry.schema)();
        move_definitions(root, &mut own, entry.name);
        let own = own["properties"].as_object().cloned().unwrap_or_default();
        let mut keys: Map<String, Value> = common.keys().map(|key| (key.clone(), json!(true))).collect();
        keys.extend(own.clone());
        choices.push(json!({
            "if": { "properties": { "name": { "const": entry.name } }, "required": ["name"] },
            "then": { "properties": keys, "additionalProperties": false },
        }));
        names.push(entry.name);
        // Plugins may use the same key for values of different types.
        for (key, value) in own {
            any.entry(key).and_modify(|known| *known = json!(true)).or_insert(value);
        }
    }
    any.insert("name".into(), json!({ "description": format!("Name of the {kind}."), "enum": names }));
    Ok(json!({ "type": "object", "properties": any, "additionalProperties": false, "allOf": choices }))
}

/// Moves the definitions of a plugin's schema to the root, where references are resolved, under unique names.
fn move_definitions(root: &mut Value, schema: &mut Value, plugin: &str) {
    let Some(definitions) = schema.as_object_mut().and_then(|schema| schema.remove("$defs")) else { return };
    let place = |value: &mut Value| rename_references(value, plugin);
    place(schema);
    for (name, mut definition) in definitions.as_object().cloned().unwrap_or_default() {
        place(&mut definition);
        root["$defs"][format!("{plugin}.{name}")] = definition;
    }
}

fn rename_references(value: &mut Value, plugin: &str) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(reference)) = fields.get_mut("$ref") {
                *reference = reference.replace("#/$defs/", &format!("#/$defs/{plugin}."));
            }
            fields.values_mut().for_each(|value| rename_references(value, plugin));
        }
        Value::Array(values) => values.iter_mut().for_each(|value| rename_references(value, plugin)),
        _ => {}
    }
}
