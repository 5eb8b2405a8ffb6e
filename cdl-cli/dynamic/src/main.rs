//! `cdl` linked with the shared `cdl-core`, so that it can load plugins.

use std::process::ExitCode;

use cdl_dylib as _;

fn main() -> ExitCode {
    // SAFETY: the operating system calls `main`, and no thread has been started.
    unsafe { cdl_cli::start_with_plugins() }
}
