//! Methods from outside: shared libraries that register plugins when they are loaded.
//!
//! A loaded plugin works only if it and the program have **one** copy of this crate between them, with one registry, one
//! counter of tensor ids and one thread pool; a library with a copy of its own computes wrong gradients without an error.
//! So plugins link against this crate's shared form (`core/dylib`), and [`load`] refuses every library that does not,
//! before any of its code runs.
//!
//! A library becomes a plugin by [`export_plugin!`](crate::export_plugin), which `cdl plugin build` adds: the source of a
//! plugin is an ordinary crate that can as well be linked in.

mod build_stamp;
mod load;
mod plugin_manifest;

pub use self::{
    build_stamp::{IDENTITY, Import, STAMP, SYMBOL},
    load::{Identity, Loaded, inspect, load, loaded, origin_of},
    plugin_manifest::Manifest,
};

/// Makes a shared library a plugin that [`load`] takes. Everything registered in it and in the crates that it links is
/// then there by name.
///
/// ```ignore
/// extern crate cdl_dylib as _;      // cdl-core's shared form
/// extern crate my_methods as _;     // the crate that registers them
/// cdl_core::export_plugin!("my_methods", "0.1.0");
/// ```
#[macro_export]
macro_rules! export_plugin {
    ($name:literal, $version:literal) => {
        $crate::__plugin_identity!();
        const CDL_MANIFEST: &str = $crate::__plugin_manifest!($name, $version);
        /// Read from the file before it is loaded.
        #[used]
        #[unsafe(no_mangle)]
        pub static CDL_PLUGIN_MANIFEST: [u8; CDL_MANIFEST.len()] = match CDL_MANIFEST.as_bytes().first_chunk()
        {
            Some(bytes) => *bytes,
            None => unreachable!(),
        };
        /// Who this library shares `cdl-core` with.
        #[unsafe(no_mangle)]
        pub extern "C" fn cdl_plugin_identity() -> $crate::registry::dynamic::Identity {
            $crate::registry::dynamic::Identity::here()
        }
    };
}
