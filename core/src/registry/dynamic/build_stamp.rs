//! Build stamp, which must be equal in a plugin and in the program that loads it. `build.rs` computes it.

include!(concat!(env!("OUT_DIR"), "/stamp.rs"));

/// Address of a symbol that a plugin imports. It is never dereferenced.
#[derive(Debug)]
pub struct Import(pub *const u8);

// SAFETY: the address is never dereferenced.
unsafe impl Sync for Import {}
