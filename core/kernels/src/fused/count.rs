//! Count of multiply-adds, and measurement of the peak rate of the CPU.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use rayon::prelude::*;

use super::{
    panel::Pool,
    tile::{Left, Order, PANEL, Right, STRIP, SimdLevel, product},
};
use crate::slices::{View, gemm};

static MULTIPLY_ADDS: AtomicU64 = AtomicU64::new(0);
static RECOMPUTED: AtomicU64 = AtomicU64::new(0);

/// Adds `count` multiply-adds to the total.
pub(super) fn add(count: usize) {
    MULTIPLY_ADDS.fetch_add(count as u64, Ordering::Relaxed);
}

/// Runs `work`, a recomputation, without counting its multiply-adds. Multiply-adds of other threads during `work` are
/// not counted either.
pub(super) fn recompute<T>(work: impl FnOnce() -> T) -> T {
    let before = MULTIPLY_ADDS.load(Ordering::Relaxed);
    let done = work();
    RECOMPUTED.fetch_add(MULTIPLY_ADDS.load(Ordering::Relaxed) - before, Ordering::Relaxed);
    done
}

/// Returns the number of multiply-adds of all products of this process so far, without padding and recomputation.
pub fn multiply_adds() -> u64 {
    MULTIPLY_ADDS.load(Ordering::Relaxed).saturating_sub(RECOMPUTED.load(Ordering::Relaxed))
}

/// Floating-point operations per second of this CPU, all threads together.
#[derive(Debug, Clone, Copy)]
pub struct Rates {
    /// Rate of the product kernel on operands in the first-level cache, an upper bound.
    pub kernel: f64,
    /// Rate of one matrix product of the size of a layer by the crate gemm, which candle uses.
    pub matmul: f64,
}

/// Measures both rates for about `seconds` each. The matrix product is `(tokens, inputs)` times `(inputs, outputs)`.
pub fn rates(seconds: f64, (tokens, inputs, outputs): (usize, usize, usize)) -> Rates {
    const DEPTH: usize = 128;
    const ROUNDS: usize = 2000;
    let threads = rayon::current_num_threads();
    let (pool, level) = (Arc::<Pool>::default(), SimdLevel::best());
    let (mut a, mut b) = (pool.zeros(STRIP * DEPTH), pool.zeros(PANEL * DEPTH));
    a.fill(0.5);
    b.fill(0.5);
    let kernel = rate(seconds, 2 * threads * ROUNDS * STRIP * PANEL * DEPTH, || {
        (0..threads).into_par_iter().for_each(|_| {
            let mut c = pool.zeros(STRIP * PANEL);
            for _ in 0..ROUNDS {
                let left = Left { data: &a, order: Order::Columns, stride: STRIP };
                let right = Right { data: &b, stride: PANEL };
                product(level, (STRIP, PANEL, DEPTH), left, right, &mut c, PANEL, false);
            }
        });
    });
    let (x, w) = (vec![0.5; tokens * inputs], vec![0.5; inputs * outputs]);
    let mut y = vec![0f32; tokens * outputs];
    let matmul = rate(seconds, 2 * tokens * inputs * outputs, || {
        let (x, w) = (View::rows(&x, inputs), View::rows(&w, outputs));
        gemm((tokens, inputs, outputs), &mut y, outputs, false, x, w, threads);
    });
    Rates { kernel, matmul }
}

/// Returns the operations per second of `f`, which performs `operations` per call.
fn rate(seconds: f64, operations: usize, mut f: impl FnMut()) -> f64 {
    f();
    let start = Instant::now();
    let mut done = 0;
    while done == 0 || start.elapsed().as_secs_f64() < seconds {
        f();
        done += operations;
    }
    done as f64 / start.elapsed().as_secs_f64()
}
