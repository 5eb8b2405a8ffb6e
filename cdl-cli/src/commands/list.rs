//! `cdl list`.

use cdl_core::registry::{Kind, entries};

use crate::{failure::Failure, plugin::loading, terminal::emit};

/// Prints every registered plugin by kind.
pub fn list() -> Result<(), Failure> {
    let mut text = String::new();
    for kind in Kind::ALL {
        text += &format!("{kind}s\n");
        for entry in entries(kind)? {
            let origin = loading::origin(entry).map(|origin| format!(" ({origin})")).unwrap_or_default();
            text += &format!("  {:14} {}{origin}\n", entry.name, entry.about);
        }
    }
    emit(&text)
}
