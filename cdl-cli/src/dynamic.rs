//! `cdl` with the built-in plugins, ready to load more.

use std::process::ExitCode;

fn main() -> ExitCode {
    cdl_cli::main()
}
