//! How many threads compute.

use std::{env, process::Command};

use crate::Failure;

/// Threads of candle's own pool for elementwise operations, which waits by spinning. For tensors of our sizes it gains
/// nothing on an idle machine, and on a busy one it doubles the time of a step.
const CANDLE: &str = "CANDLE_NUM_THREADS";
/// Threads of everything else, read by rayon and by candle's matrix product.
const RAYON: &str = "RAYON_NUM_THREADS";

/// Settles both numbers for the process.
///
/// Both are read from the environment, at first use and by other threads, so they have to be there from the start: the
/// program replaces itself with one that has them. Where that is impossible it goes on as it is.
pub fn settle(threads: Option<usize>) -> Result<(), Failure> {
    if threads == Some(0) {
        return Err(Failure::mistake("--threads 0: expected at least 1".into()));
    }
    let rayon = env::var(RAYON).ok();
    let available = || Some(std::thread::available_parallelism().ok()?.to_string());
    let wanted = threads.map(|count| count.to_string()).or_else(|| rayon.clone()).or_else(available);
    let candle = env::var(CANDLE).unwrap_or_else(|_| "1".into());
    if rayon == wanted && env::var_os(CANDLE).is_some() {
        return Ok(());
    }
    let (Ok(program), Some(wanted)) = (env::current_exe(), wanted) else { return Ok(()) };
    let mut command = Command::new(program);
    command.args(env::args_os().skip(1)).env(CANDLE, candle).env(RAYON, wanted);
    replace(&mut command);
    Ok(())
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
