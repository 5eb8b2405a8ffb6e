//! `cdl` with the methods of `examples/plugin` linked in.

use cdl_example_plugin as _;

fn main() -> std::process::ExitCode {
    cdl_cli::main()
}
