//! `cdl` with the built-in plugins.

use std::process::ExitCode;

fn main() -> ExitCode {
    cdl_cli::main()
}
