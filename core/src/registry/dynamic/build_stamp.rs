//! What a plugin and the program that loads it must have in common, as `build.rs` found it.

include!(concat!(env!("OUT_DIR"), "/stamp.rs"));

/// Address of a symbol that a plugin imports and never reads.
#[derive(Debug)]
pub struct Import(pub *const u8);

// SAFETY: the address is never read through.
unsafe impl Sync for Import {}
