//! Number of threads.

use std::{env, num::NonZeroUsize, thread::available_parallelism};

/// Environment variable with the number of threads of candle's own pool for elementwise operations, which waits by
/// spinning. At the tensor sizes of this program, the pool gains nothing on an idle machine and doubles the time of a
/// step on a busy one.
const CANDLE: &str = "CANDLE_NUM_THREADS";
/// Environment variable with the number of threads of all other computations, read by rayon and by candle's matrix
/// product. If it is missing, the matrix product counts the processors of the machine for each product (on Linux).
const RAYON: &str = "RAYON_NUM_THREADS";

/// Sets the number of threads of the process to `threads`, by default to `RAYON_NUM_THREADS` or the number of
/// processors. The pool of candle gets one thread. Both numbers are read from the environment at first use, so `main`
/// must call this function first. Without this call, a prediction of a small student took 1.6 times as long.
///
/// # Safety
/// No other thread may run yet: it could read the environment during the change. A library that is loaded into another
/// program, such as an interpreter, relies on that program's environment for both variables instead.
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
