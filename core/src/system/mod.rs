//! System interface: devices, memory, threads, panics, atomic files.

pub mod atomic;
pub mod device;
pub mod files;
pub mod memory;
pub mod panics;
mod precision;
pub mod threads;

pub use precision::Precision;

/// Returns the lower-case hexadecimal digits of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
