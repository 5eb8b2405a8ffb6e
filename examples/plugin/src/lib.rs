//! Methods from outside, one of each kind. The same crate is linked into a program (`examples/src/bin/with_plugin.rs`) and
//! loaded by one that was there before:
//!
//! ```sh
//! cdl plugin build examples/plugin
//! cdl run configs/quickstart.toml examples/configs/plugin.toml --plugin examples/plugin/target/cdl/cdl_example_plugin.so
//! ```
//!
//! `cdl plugin new` starts a crate with one of these files.

mod gratings;
mod half_size;
mod shared_prompts;
mod token_hint;
