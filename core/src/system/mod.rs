//! System interface: devices, memory, threads, panics, files, locks.

pub mod atomic;
pub mod device;
pub mod files;
pub mod lock;
pub mod memory;
pub mod panics;
mod precision;
pub(crate) mod staging;
pub mod threads;

pub use precision::Precision;

/// Returns the lower-case hexadecimal digits of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
