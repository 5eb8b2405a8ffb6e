//! What was computed, and how fast this machine could compute it.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use rayon::prelude::*;

use super::tile::{Left, Level, Order, PANEL, Right, STRIP, product};

static MULTIPLY_ADDS: AtomicU64 = AtomicU64::new(0);

/// Notes so many multiply-adds.
pub(super) fn add(count: usize) {
    MULTIPLY_ADDS.fetch_add(count as u64, Ordering::Relaxed);
}

/// Multiply-adds of all products of this process so far: those that the result needs, padding and what is computed
/// twice left out.
pub fn multiply_adds() -> u64 {
    MULTIPLY_ADDS.load(Ordering::Relaxed)
}

/// Floating-point operations a second of the product kernel on operands that stay in the cache, all threads together,
/// measured for about `seconds`.
pub fn peak(seconds: f64) -> f64 {
    const DEPTH: usize = 256;
    const ROUNDS: usize = 2000;
    let threads = rayon::current_num_threads();
    let (a, b) = (vec![0.5; STRIP * DEPTH], vec![0.5; PANEL * DEPTH]);
    let level = Level::best();
    let start = Instant::now();
    let mut operations = 0;
    while start.elapsed().as_secs_f64() < seconds {
        (0..threads).into_par_iter().for_each(|_| {
            let mut c = vec![0.0; STRIP * PANEL];
            for _ in 0..ROUNDS {
                let left = Left { data: &a, order: Order::Columns, stride: STRIP };
                let right = Right { data: &b, stride: PANEL };
                product(level, (STRIP, PANEL, DEPTH), left, right, &mut c, PANEL, false);
            }
        });
        operations += 2 * threads * ROUNDS * STRIP * PANEL * DEPTH;
    }
    operations as f64 / start.elapsed().as_secs_f64()
}
