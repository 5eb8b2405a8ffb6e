//! `cdl` linked with the shared `cdl-core`, so that it can load plugins.

use std::process::ExitCode;

use cdl_dylib as _;

fn main() -> ExitCode {
    // SAFETY: nothing has started a thread yet.
    unsafe { cdl_cli::start_with_plugins() }
}
