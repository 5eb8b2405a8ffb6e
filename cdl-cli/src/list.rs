//! `cdl list`.

use cdl_core::registry::{Kind, entries};

use crate::Failure;

/// Prints every registered plugin by kind.
pub fn list() -> Result<(), Failure> {
    for kind in Kind::ALL {
        println!("{kind}s");
        for entry in entries(kind)? {
            println!("  {:14} {}", entry.name, entry.about);
        }
    }
    Ok(())
}
