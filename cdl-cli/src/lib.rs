//! `cdl`: continual distillation learning on the command line.
//!
//! A crate that registers plugins of its own becomes a `cdl` with them by one line, [`cdl_cli::main!();`](main).
//!
//! Exit codes: 0 done, 1 failed while working, 2 error of the user, 75 a sweep's cell that another process is running, 130
//! and 143 stopped by SIGINT and SIGTERM.

mod batch_size;
mod bench;
mod cli;
mod commands;
mod compare;
mod config_args;
mod failure;
mod lifecycle;
mod logging;
mod output_place;
mod plugin;
mod progress;
mod recorded_training;
mod report;
mod signals;
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

/// Defines `main`: the command line with the built-in plugins and those that the crate links in.
///
/// The `main` that it defines is for the system to call, once and before any thread runs; nothing else may call it.
#[macro_export]
macro_rules! main {
    () => {
        fn main() -> ::std::process::ExitCode {
            // SAFETY: the system calls `main`, and nothing has started a thread.
            unsafe { $crate::start() }
        }
    };
}

/// Runs the program as [`start`] does, with a `cdl-core` that is the shared library `cdl-dylib`: it loads plugins.
///
/// # Safety
/// As for [`start`].
pub unsafe fn start_with_plugins() -> ExitCode {
    loading::share();
    // SAFETY: the same contract.
    unsafe { start() }
}

/// Runs the program on the command line's arguments, with the built-in plugins and whatever else is linked in.
///
/// # Safety
/// Called first in `main`, while no other thread runs: it sets environment variables
/// ([`threads::configure`](cdl_core::system::threads::configure)).
pub unsafe fn start() -> ExitCode {
    let cli = Cli::parse();
    // SAFETY: reading arguments starts no thread, and none runs before, by the contract of this function.
    unsafe { cdl_core::system::threads::configure(cli.threads) };
    cdl_core::system::panics::silence_caught();
    cdl_plugins::link();
    let profile = matches!(cli.command, Command::Bench(_)).then(Profile::default);
    let log = logging::start(cli.quiet, cli.verbose, profile.clone());
    for variable in cdl_core::config::unknown_variables() {
        let nearest = variable.nearest.map(|name| format!("; did you mean {name}?")).unwrap_or_default();
        tracing::warn!("environment variable {} is not a setting and has no effect{nearest}", variable.name);
    }
    let loaded = if cli.command.needs_plugins() { loading::load_all(&cli.plugins) } else { Ok(()) };
    let done = loaded.and_then(|()| {
        // A plugin's panic that could not be returned where it happened is returned here.
        cdl_core::registry::catch(|| Ok(cli.command.run(&cli.plugins, &log, &profile.unwrap_or_default())))
            .map_err(Failure::before_writing)?
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tracing::error!("{}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}
