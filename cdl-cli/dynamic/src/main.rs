//! `cdl` with the built-in plugins, ready to load more: its `cdl-core` is the shared library that plugins take theirs from.

use std::process::ExitCode;

use cdl_dylib as _;

fn main() -> ExitCode {
    // SAFETY: nothing has started a thread yet.
    unsafe { cdl_cli::start_with_plugins() }
}
