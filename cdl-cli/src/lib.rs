//! `cdl`: continual distillation learning on the command line.
//!
//! A crate that registers its own plugins builds a `cdl` that contains them with one line, [`cdl_cli::main!();`](main).
//!
//! Exit codes: 0 success, 1 failure while running, 2 invalid input, 75 another process runs the sweep's cell, 130 and
//! 143 stopped by SIGINT and SIGTERM.

mod batch_size;
mod bench;
mod cli;
mod commands;
mod compare;
mod config_args;
mod failure;
mod lifecycle;
mod logging;
mod output_paths;
mod plugin;
mod progress;
mod recorded_training;
mod report;
mod signals;
mod statistics;
mod sweep;
mod tensorboard;
mod terminal;
mod toolchain;

use std::process::ExitCode;

use clap::Parser;

use self::{
    bench::profile::Profile,
    cli::{Cli, Command},
    failure::Failure,
    plugin::loading,
};

/// Defines `main`: the command line with the built-in plugins and those that the crate registers.
///
/// Only the operating system may call this `main`, once and before any thread runs.
#[macro_export]
macro_rules! main {
    () => {
        fn main() -> ::std::process::ExitCode {
            // SAFETY: the operating system calls `main`, and no thread has been started.
            unsafe { $crate::start() }
        }
    };
}

/// Enables plugins that are loaded at run time, then runs the program as [`start`] does. The program must link
/// `cdl-core` as the shared library `cdl-dylib`.
///
/// # Safety
/// As for [`start`].
pub unsafe fn start_with_plugins() -> ExitCode {
    loading::enable();
    // SAFETY: the caller guarantees what `start` requires.
    unsafe { start() }
}

/// Runs the program on the arguments of the process, with the built-in plugins and all others that are linked in.
///
/// # Safety
/// Must be the first call in `main`, while no other thread runs, because it sets environment variables
/// ([`threads::configure`](cdl_core::system::threads::configure)).
pub unsafe fn start() -> ExitCode {
    let cli = Cli::parse();
    // SAFETY: parsing arguments starts no thread, and the caller guarantees that none runs.
    unsafe { cdl_core::system::threads::configure(cli.threads) };
    cdl_core::system::panics::silence_caught();
    cdl_plugins::link();
    let profile = matches!(cli.command, Command::Bench(_)).then(Profile::default);
    let log = logging::start(cli.quiet, cli.verbose, profile.clone());
    for variable in cdl_core::config::unknown_variables() {
        let nearest = variable.nearest.map(|name| format!("; did you mean {name}?")).unwrap_or_default();
        tracing::warn!("environment variable {} is not a setting and has no effect{nearest}", variable.name);
    }
    if cli.no_plugins {
        loading::refuse();
    }
    let loaded = if cli.command.needs_plugins() { loading::load_all(&cli.plugins) } else { Ok(()) };
    let result = loaded.and_then(|()| {
        // Last resort for panics of plugins: most become errors at the call of the plugin.
        cdl_core::registry::catch(|| Ok(cli.command.run(&cli.plugins, &log, &profile.unwrap_or_default())))
            .map_err(Failure::before_writing)?
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tracing::error!("{}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}
