//! Number of threads.

use std::{env, num::NonZeroUsize, thread::available_parallelism};

/// Threads of candle's own pool for elementwise operations, which waits by spinning. For the sizes of this program it
/// gains nothing on an idle machine, and on a busy one it doubles the time of a step.
const CANDLE: &str = "CANDLE_NUM_THREADS";
/// Threads of all other computations, read by rayon and by candle's matrix product. If the variable is missing, the
/// matrix product counts the processors of the machine for each product (on Linux).
const RAYON: &str = "RAYON_NUM_THREADS";

/// Sets the number of threads of the process to `threads`, by default to `RAYON_NUM_THREADS` or the number of
/// processors. The pool of candle gets one thread. Both numbers are read from the environment at first use, so this
/// must be called first in `main`. Without it, a prediction of a small student took 1.6 times as long.
///
/// # Safety
/// No other thread may run yet: it could read the environment while it changes. A program that is loaded by another
/// one, such as an interpreter, must set both variables from outside instead.
pub unsafe fn configure(threads: Option<NonZeroUsize>) {
    // Rayon and candle ignore values that are not numbers above 0.
    let from_environment = || env::var(RAYON).ok()?.parse().ok();
    let Some(count) = threads.or_else(from_environment).or_else(|| available_parallelism().ok()) else {
        return;
    };
    // SAFETY: no other thread runs, by the contract of this function.
    unsafe {
        env::set_var(RAYON, count.to_string());
        if env::var_os(CANDLE).is_none() {
            env::set_var(CANDLE, "1");
        }
    }
}
