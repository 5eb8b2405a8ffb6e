//! How many threads compute.

use std::{env, num::NonZeroUsize, thread::available_parallelism};

/// Threads of candle's own pool for elementwise operations, which waits by spinning. For tensors of our sizes it gains
/// nothing on an idle machine, and on a busy one it doubles the time of a step.
const CANDLE: &str = "CANDLE_NUM_THREADS";
/// Threads of everything else, read by rayon and by candle's matrix product, which (on Linux) counts the machine's processors
/// anew for each product where the variable is missing.
const RAYON: &str = "RAYON_NUM_THREADS";

/// Sets both numbers for the process: `threads` compute, else as many as the environment says or the machine has, and
/// candle's own pool has one. Both are read from the environment at first use, so this is called first in `main`: an image
/// through a small student was seen to take 1.6 times as long without it.
///
/// # Safety
/// No other thread may run yet: one that reads the environment meanwhile could read freed memory. A program that another one
/// loads and runs, as an interpreter does, sets both variables from outside instead.
pub unsafe fn settle(threads: Option<NonZeroUsize>) {
    // Rayon and candle ignore what is no number above 0.
    let written = || env::var(RAYON).ok()?.parse().ok();
    let Some(count) = threads.or_else(written).or_else(|| available_parallelism().ok()) else { return };
    // SAFETY: no other thread runs, by the contract of this function.
    unsafe {
        env::set_var(RAYON, count.to_string());
        if env::var_os(CANDLE).is_none() {
            env::set_var(CANDLE, "1");
        }
    }
}
