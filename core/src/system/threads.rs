//! How many threads compute.

use std::{env, num::NonZeroUsize, process::Command, thread::available_parallelism};

/// Threads of candle's own pool for elementwise operations, which waits by spinning. For tensors of our sizes it gains
/// nothing on an idle machine, and on a busy one it doubles the time of a step.
const CANDLE: &str = "CANDLE_NUM_THREADS";
/// Threads of everything else, read by rayon and by candle's matrix product, which (on Linux) counts the machine's processors
/// anew for each product where the variable is missing.
const RAYON: &str = "RAYON_NUM_THREADS";

/// Settles both numbers for the process: `threads` compute, else as many as the environment says or the machine has, and
/// candle's own pool has one. To be called first in `main`, before there are other threads: an image through a small student
/// was seen to take 1.6 times as long without it.
///
/// Both are read from the environment, at first use and by other threads, so they have to be there from the start: the
/// program replaces itself with one that has them, with the same arguments. Where that is impossible, and where there is no
/// `exec` (it is not Unix), it goes on as it is; so a program that another one loads and runs, as an interpreter does, sets
/// both from outside instead.
pub fn settle(threads: Option<NonZeroUsize>) {
    // What is no number above 0, rayon and candle pass over.
    let rayon = env::var(RAYON).ok().filter(|count| count.parse::<NonZeroUsize>().is_ok());
    let available = || available_parallelism().ok().map(|count| count.to_string());
    let wanted = threads.map(|count| count.to_string()).or_else(|| rayon.clone()).or_else(available);
    if rayon == wanted && env::var_os(CANDLE).is_some() {
        return;
    }
    let candle = env::var(CANDLE).unwrap_or_else(|_| "1".into());
    let (Ok(program), Some(wanted)) = (env::current_exe(), wanted) else { return };
    let mut command = Command::new(program);
    command.args(env::args_os().skip(1)).env(CANDLE, candle).env(RAYON, wanted);
    replace(&mut command);
}

/// Becomes `command`; returns only if that fails.
#[cfg(unix)]
fn replace(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    let error = command.exec();
    tracing::debug!("cannot settle the number of threads: {error}");
}

#[cfg(not(unix))]
fn replace(_command: &mut Command) {}
