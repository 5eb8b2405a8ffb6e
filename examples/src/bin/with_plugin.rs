//! `cdl` with the methods of `examples/plugin` linked in.

use cdl_example_plugin as _;

cdl_cli::main!();
