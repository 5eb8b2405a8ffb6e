//! `cdl list`.

use cdl_core::registry::{Kind, entries};

use crate::{Failure, emit};

/// Prints every registered plugin by kind.
pub fn list() -> Result<(), Failure> {
    let mut text = String::new();
    for kind in Kind::ALL {
        text += &format!("{kind}s\n");
        for entry in entries(kind)? {
            text += &format!("  {:14} {}\n", entry.name, entry.about);
        }
    }
    emit(&text)
}
