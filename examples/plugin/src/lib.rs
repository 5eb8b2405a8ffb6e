//! Example plugin with one method of each kind. The crate can be linked into a program
//! (`examples/src/bin/with_plugin.rs`) or loaded at run time by an installed `cdl`:
//!
//! ```sh
//! cdl plugin build examples/plugin
//! cdl run configs/quickstart.toml examples/configs/plugin.toml --plugin examples/plugin/target/cdl/cdl_example_plugin.so
//! ```
//!
//! `cdl plugin new` creates a crate with one of these files.

mod gratings;
mod half_size;
mod shared_prompts;
mod token_hint;
