//! `cdl list`: all registered plugins.

use cdl_core::registry::{Kind, entries};
use serde_json::{Value, json};

use crate::{
    failure::Failure,
    plugin::loading,
    terminal::{emit, emit_json},
};

/// Prints every registered plugin by kind, as text or as JSON.
pub fn list(as_json: bool) -> Result<(), Failure> {
    let mut text = String::new();
    let mut plugins: Vec<Value> = Vec::new();
    for kind in Kind::ALL {
        text += &format!("{kind}s\n");
        for entry in entries(kind)? {
            let origin = loading::origin(entry);
            plugins.push(json!({
                "kind": kind.as_str(),
                "name": entry.name,
                "about": entry.about,
                "citation": entry.citation,
                "registered_by": entry.origin,
                "file": origin,
            }));
            let origin = origin.map(|origin| format!(" ({origin})")).unwrap_or_default();
            text += &format!("  {:14} {}{origin}\n", entry.name, entry.about);
        }
    }
    if as_json { emit_json(&plugins) } else { emit(&text) }
}
