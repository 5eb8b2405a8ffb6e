//! Elementary functions on slices, compiled for several instruction sets and selected at run time.
//!
//! The functions are plain loops over fixed-width groups, which the compiler vectorises. Float32 uses short polynomials
//! (errors of a few units in the last place). Float64, which only tests use, calls `libm`.

use std::ops::Range;

use candle_core::WithDType;
use multiversion::multiversion;
use rayon::prelude::*;

/// Rows per unit of parallel work. Constant, so that the split does not depend on the number of threads.
const ROWS: usize = 16;
/// Number of independent partial sums: the number of lanes of the widest vector register.
const LANES: usize = 16;

/// Floating-point type: float32 or float64.
pub trait Real: WithDType + num_traits::Float + Default + std::iter::Sum {
    /// Returns `e^x` for `x <= 0`.
    fn exp_negative(x: Self) -> Self;
    /// Returns the distribution function and the density of the standard normal distribution at `x`.
    fn normal(x: Self) -> (Self, Self);
}

impl Real for f32 {
    /// Computes 2^n times a polynomial on ±ln2/2. Values below -87 count as -87, whose exponential is 1.6e-38.
    #[inline(always)]
    fn exp_negative(x: Self) -> Self {
        // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
        const ROUND: f32 = 12_582_912.0;
        let x = if x < -87.0 { -87.0 } else { x };
        let shifted = x * std::f32::consts::LOG2_E + ROUND;
        let n = shifted - ROUND;
        // ln 2 is split into two parts, the first with few bits, so that x - n ln 2 is exact.
        let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4;
        let p = 1.0 / 720.0;
        let p = p * r + 1.0 / 120.0;
        let p = p * r + 1.0 / 24.0;
        let p = p * r + 1.0 / 6.0;
        let p = p * r + 0.5;
        let p = p * r + 1.0;
        let p = p * r + 1.0;
        p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23))
    }

    /// Computes the upper tail as `exp(-x²/2) P(t) / 2`, `t = 1 / (1 + 0.39 |x|/√2)`. P is a minimax fit of the
    /// scaled complementary error function with absolute error 8e-9. The distribution function's error is below 2e-7.
    #[inline(always)]
    fn normal(x: Self) -> (Self, Self) {
        let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
        let t = 1.0 / (1.0 + 0.39 * z);
        let p = -0.227_540_1;
        let p = p * t + 0.886_676_6;
        let p = p * t - 0.635_420_2;
        let p = p * t + 0.649_575_5;
        let p = p * t + 0.091_381_95;
        let p = p * t + 0.235_326_25;
        let e = Self::exp_negative(-z * z);
        let tail = 0.5 * p * t * e;
        (if x < 0.0 { tail } else { 1.0 - tail }, e * 0.398_942_3)
    }
}

impl Real for f64 {
    fn exp_negative(x: Self) -> Self {
        x.exp()
    }

    fn normal(x: Self) -> (Self, Self) {
        let cdf = 0.5 * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2);
        (cdf, (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt())
    }
}

/// Computes `count` values in rows of `width` in parallel. `f` receives the element range of each group of [`ROWS`]
/// rows, and the slice to write.
pub fn by_rows<T: Real>(count: usize, width: usize, f: impl Fn(Range<usize>, &mut [T]) + Sync) -> Vec<T> {
    let mut y = vec![T::default(); count];
    let chunk = ROWS * width;
    y.par_chunks_mut(chunk).enumerate().for_each(|(index, group)| {
        let start = index * chunk;
        f(start..start + group.len(), group);
    });
    y
}

/// Returns the sum of `term(0)` to `term(count - 1)` from [`LANES`] partial sums, in a fixed order.
#[inline(always)]
fn sum_of<T: Real>(count: usize, term: impl Fn(usize) -> T) -> T {
    let mut partial = [T::zero(); LANES];
    let whole = count / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        for (lane, sum) in partial.iter_mut().enumerate() {
            *sum += term(start + lane);
        }
    }
    let mut total = T::zero();
    for sum in partial {
        total += sum;
    }
    for i in whole..count {
        total += term(i);
    }
    total
}

/// Returns mean and reciprocal standard deviation of one row (biased variance, two passes).
#[inline(always)]
fn moments<T: Real>(x: &[T], eps: T) -> (T, T) {
    let n = T::from_f64(x.len() as f64);
    let mean = sum_of(x.len(), |i| x[i]) / n;
    let variance = sum_of(x.len(), |i| (x[i] - mean) * (x[i] - mean)) / n;
    (mean, T::one() / (variance + eps).sqrt())
}

/// Computes `y = (x - mean) / sqrt(var + eps) * γ + β` for every row of `γ.len()` elements.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx+avx2", "aarch64+neon"))]
pub fn layer_norm<T: Real>(x: &[T], gamma: &[T], beta: &[T], eps: T, y: &mut [T]) {
    let width = gamma.len();
    for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
        let (mean, rstd) = moments(x, eps);
        for i in 0..width {
            y[i] = (x[i] - mean) * rstd * gamma[i] + beta[i];
        }
    }
}

/// Computes `dx = rstd * (g - mean(g) - x̂ mean(g x̂))` with `g = dy γ` and `x̂` the normalised row.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx+avx2", "aarch64+neon"))]
pub fn layer_norm_backward<T: Real>(x: &[T], gamma: &[T], eps: T, dy: &[T], dx: &mut [T]) {
    let width = gamma.len();
    let n = T::from_f64(width as f64);
    for ((x, dy), dx) in x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width)) {
        let (mean, rstd) = moments(x, eps);
        let mean_g = sum_of(width, |i| dy[i] * gamma[i]) / n;
        let mean_gx = sum_of(width, |i| dy[i] * gamma[i] * (x[i] - mean) * rstd) / n;
        for i in 0..width {
            dx[i] = rstd * (dy[i] * gamma[i] - mean_g - (x[i] - mean) * rstd * mean_gx);
        }
    }
}

/// Computes the softmax of each row of `width` of `scores * scale` in place, after subtracting the row's maximum.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx+avx2", "aarch64+neon"))]
pub fn softmax<T: Real>(scores: &mut [T], width: usize, scale: T) {
    for row in scores.chunks_exact_mut(width) {
        let mut partial = [T::neg_infinity(); LANES];
        for (i, &v) in row.iter().enumerate() {
            let lane = &mut partial[i % LANES];
            *lane = if v > *lane { v } else { *lane };
        }
        let max = partial.iter().fold(T::neg_infinity(), |a, &b| if b > a { b } else { a });
        for v in row.iter_mut() {
            *v = T::exp_negative((*v - max) * scale);
        }
        let norm = T::one() / sum_of(row.len(), |i| row[i]);
        for v in row.iter_mut() {
            *v *= norm;
        }
    }
}

/// Computes `y = gelu(x)`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx+avx2", "aarch64+neon"))]
pub fn gelu<T: Real>(x: &[T], y: &mut [T]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = x * T::normal(x).0;
    }
}

/// Computes `dx = dy * gelu'(x)`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx+avx2", "aarch64+neon"))]
pub fn gelu_backward<T: Real>(x: &[T], dy: &[T], dx: &mut [T]) {
    for ((dx, &dy), &x) in dx.iter_mut().zip(dy).zip(x) {
        let (cdf, density) = T::normal(x);
        *dx = dy * (cdf + x * density);
    }
}

/// Returns `Σ a·b` from [`LANES`] partial sums.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx+avx2", "aarch64+neon"))]
pub fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    sum_of(a.len().min(b.len()), |i| a[i] * b[i])
}

/// Operand of [`gemm`]: a matrix inside a slice.
#[derive(Clone, Copy)]
pub struct View<'a, T> {
    data: &'a [T],
    row_stride: usize,
    column_stride: usize,
}

impl<'a, T> View<'a, T> {
    /// Creates a matrix whose rows are `row_stride` apart and contiguous.
    pub fn rows(data: &'a [T], row_stride: usize) -> Self {
        Self { data, row_stride, column_stride: 1 }
    }

    /// Returns the transposed matrix.
    pub fn t(self) -> Self {
        Self { row_stride: self.column_stride, column_stride: self.row_stride, ..self }
    }

    fn covers(&self, rows: usize, columns: usize) -> bool {
        rows == 0
            || columns == 0
            || (rows - 1) * self.row_stride + (columns - 1) * self.column_stride < self.data.len()
    }
}

/// Computes `dst = a b`, or `dst += a b` if `accumulate`; `a` is `(m, k)`, `b` is `(k, n)`, and `dst` has `m` rows of
/// `n`, `dst_stride` apart. If `threads` is 1, the calling thread computes alone.
///
/// # Panics
/// If an operand's slice is too small for its matrix, which is a bug in the caller.
#[allow(clippy::too_many_arguments)]
pub fn gemm<T: Real>(
    (m, k, n): (usize, usize, usize),
    dst: &mut [T],
    dst_stride: usize,
    accumulate: bool,
    a: View<'_, T>,
    b: View<'_, T>,
    threads: usize,
) {
    assert!(a.covers(m, k) && b.covers(k, n), "an operand exceeds its slice");
    assert!(m == 0 || n == 0 || ((m - 1) * dst_stride + n <= dst.len()), "the result exceeds its slice");
    assert!(m <= 1 || dst_stride >= n, "rows of the result overlap");
    let parallelism = if threads > 1 { gemm::Parallelism::Rayon(threads) } else { gemm::Parallelism::None };
    // SAFETY: all three pointers come from slices; the asserts above show that every element the strides reach lies
    // inside them and that rows of `dst` do not overlap, and `dst` is borrowed mutably, so it aliases neither operand.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.as_mut_ptr(),
            1,
            dst_stride as isize,
            accumulate,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            T::one(),
            T::one(),
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn float32_exponential_and_normal_agree_with_float64() {
        for i in 0..=200_000 {
            let x = -87.0 * i as f32 / 200_000.0;
            let exact = (x as f64).exp();
            assert!(((f32::exp_negative(x) as f64 - exact) / exact).abs() < 4e-7, "exp({x})");
        }
        for i in -60_000..=60_000 {
            let x = i as f32 / 5_000.0;
            let (cdf, density) = f32::normal(x);
            let (cdf64, density64) = f64::normal(x as f64);
            assert!((cdf as f64 - cdf64).abs() < 2e-7, "cdf({x}) = {cdf}, exact {cdf64}");
            assert!((density as f64 - density64).abs() < 1e-7, "density({x})");
        }
    }
}
