//! `cdl` with the built-in plugins.

cdl_cli::main!();
