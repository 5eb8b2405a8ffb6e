//! `cdl` with the built-in plugins, ready to load more: its `cdl-core` is the shared library that plugins take theirs from.

use std::process::ExitCode;

use cdl_dylib as _;

fn main() -> ExitCode {
    cdl_cli::main_with_plugins()
}
