//! Plugins loaded at run time: shared libraries that register methods.
//!
//! A loaded plugin and the program must share **one** copy of this crate, with one registry, one counter of tensor ids
//! and one thread pool. A library with its own copy would compute wrong gradients without an error. Plugins therefore
//! link against the shared library of this crate (`core/dylib`), and [`load`] refuses every library that does not,
//! before any of its code runs. It also refuses libraries that another user can change.
//!
//! [`export_plugin!`](crate::export_plugin), which `cdl plugin build` adds, makes a library a plugin. The source of a
//! plugin is an ordinary crate that can also be linked into a program.

mod build_stamp;
#[cfg(unix)]
mod file_access;
mod library_file;
mod load;
mod plugin_manifest;

pub use self::{
    build_stamp::{IDENTITY, Import, STAMP, SYMBOL},
    load::{Identity, Inspected, Loaded, inspect, load, loaded, origin_of},
    plugin_manifest::Manifest,
};

/// Makes a shared library a plugin for [`load`]. Loading the plugin registers the methods of the library and of all
/// crates linked into it.
///
/// ```ignore
/// extern crate cdl_dylib as _;      // shared library of cdl-core
/// extern crate my_methods as _;     // crate that registers the methods
/// cdl_core::export_plugin!("my_methods", "0.1.0");
/// ```
#[macro_export]
macro_rules! export_plugin {
    ($name:literal, $version:literal) => {
        $crate::__plugin_identity!();
        const CDL_MANIFEST: &str = $crate::__plugin_manifest!($name, $version);
        /// Manifest, which is read from the file before the library is loaded.
        #[used]
        #[unsafe(no_mangle)]
        pub static CDL_PLUGIN_MANIFEST: [u8; CDL_MANIFEST.len()] = match CDL_MANIFEST.as_bytes().first_chunk()
        {
            Some(bytes) => *bytes,
            None => unreachable!(),
        };
        /// Returns the identity of the `cdl-core` that this library uses.
        #[unsafe(no_mangle)]
        pub extern "C" fn cdl_plugin_identity() -> $crate::registry::dynamic::Identity {
            $crate::registry::dynamic::Identity::here()
        }
    };
}
