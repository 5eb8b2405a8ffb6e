//! Matrix product kernel of the fast path, with register tiles for AVX-512, for AVX2 with FMA, and for any CPU.
//!
//! All operations are products `C = A B` (or `C += A B`) in which the columns of `B` and `C` are tokens: rows of at
//! most [`PANEL`] contiguous columns. `A`, usually weights, is read one element at a time and multiplied with a whole
//! row of `B`. Each entry of `C` is one chain of multiply-adds in the order of the depth, so it does not depend on how
//! the work is split. AVX2 and AVX-512 give the same bits. The portable kernel has no fused multiply-add and rounds
//! every product, so its last digits differ.

use std::sync::OnceLock;

/// Number of tokens computed together, a multiple of the register width of every kernel.
pub const PANEL: usize = 48;
/// Rows of `C` in one tile.
pub const STRIP: usize = 8;
/// Number of columns in a group. Products compute whole groups.
pub const GROUP: usize = 16;

/// Memory layout of `A`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Column-major: element `(row, depth)` at `depth * stride + row`.
    Columns,
    /// Row-major: element `(row, depth)` at `row * stride + depth`.
    Rows,
    /// Strips of eight along the depth: element `(row, depth)` at `depth / 8 * stride + row * 8 + depth % 8`.
    Strips,
}

const COLUMNS: u8 = Order::Columns as u8;
const ROWS: u8 = Order::Rows as u8;
const STRIPS: u8 = Order::Strips as u8;

/// Left operand of a product.
#[derive(Debug, Clone, Copy)]
pub struct Left<'a> {
    /// Elements, from the first on.
    pub data: &'a [f32],
    /// Memory layout.
    pub order: Order,
    /// Stride of the layout, see [`Order`].
    pub stride: usize,
}

/// Right operand of a product, with rows `stride` apart.
#[derive(Debug, Clone, Copy)]
pub struct Right<'a> {
    /// Elements, from the first on.
    pub data: &'a [f32],
    /// Distance between rows.
    pub stride: usize,
}

/// Instruction set of the product kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SimdLevel {
    /// 512-bit registers.
    Avx512,
    /// 256-bit registers and fused multiply-add.
    Avx2,
    /// Supported by every CPU.
    Portable,
}

impl SimdLevel {
    /// Returns the levels that this CPU supports, fastest first.
    pub fn available() -> Vec<Self> {
        let mut levels = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                levels.push(Self::Avx512);
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                levels.push(Self::Avx2);
            }
        }
        levels.push(Self::Portable);
        levels
    }

    /// Returns the level named by the environment variable `CDL_SIMD` (`avx512`, `avx2`, `portable`), or else the
    /// fastest. Logs a warning and returns the fastest if this CPU does not support the named level.
    pub fn best() -> Self {
        static BEST: OnceLock<SimdLevel> = OnceLock::new();
        *BEST.get_or_init(|| {
            let available = Self::available();
            let Ok(requested) = std::env::var("CDL_SIMD") else { return available[0] };
            available.iter().copied().find(|level| level.as_str() == requested).unwrap_or_else(|| {
                let known: Vec<&str> = available.iter().map(|level| level.as_str()).collect();
                let (known, best) = (known.join(", "), available[0].as_str());
                tracing::warn!(
                    "CDL_SIMD={requested} is not available: this CPU supports {known}; using {best}"
                );
                available[0]
            })
        })
    }

    /// Returns whether the kernel prefetches the left operand. For other levels the caller prefetches it: their kernels
    /// have fewer products per step, and prefetching in them takes longer than the products (measured).
    pub const fn prefetches(self) -> bool {
        matches!(self, Self::Avx512)
    }

    /// Returns the lower-case name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Portable => "portable",
        }
    }
}

/// Computes `c = a b`, or `c += a b` if `add`: `rows` (a multiple of [`STRIP`]) by `columns` (at most [`PANEL`]), over
/// `depth`. Columns are rounded up to whole [`GROUP`]s, for which operands and result must have space.
///
/// # Panics
/// If an operand's slice is too small for its matrix, which is a bug in the caller.
#[inline]
pub fn product(
    level: SimdLevel,
    (rows, columns, depth): (usize, usize, usize),
    a: Left<'_>,
    b: Right<'_>,
    c: &mut [f32],
    c_stride: usize,
    add: bool,
) {
    let groups = columns.div_ceil(GROUP);
    let wide = groups * GROUP;
    if rows == 0 || columns == 0 {
        return;
    }
    assert!(rows.is_multiple_of(STRIP) && (1..=3).contains(&groups), "{rows} rows, {columns} columns");
    assert!((rows - 1) * c_stride + wide <= c.len() && c_stride >= wide, "the result exceeds its slice");
    if depth > 0 {
        assert!((depth - 1) * b.stride + wide <= b.data.len(), "the right operand exceeds its slice");
        let last = match a.order {
            Order::Columns => (depth - 1) * a.stride + rows - 1,
            Order::Rows => (rows - 1) * a.stride + depth - 1,
            Order::Strips => {
                assert!(depth.is_multiple_of(STRIP));
                (depth / STRIP - 1) * a.stride + rows * STRIP - 1
            }
        };
        assert!(last < a.data.len(), "the left operand exceeds its slice");
    }
    let kernel = kernel(level, a.order, groups);
    for row in (0..rows).step_by(STRIP) {
        let offset = match a.order {
            Order::Columns => row,
            Order::Rows => row * a.stride,
            Order::Strips => row * STRIP,
        };
        // SAFETY: the asserts above show that every element that the kernel reads or writes, rows `row..row + 8` of
        // `a` and `c` and `wide` columns of `b` and `c`, lies inside the slices; `c` is borrowed mutably and so apart
        // from both operands; levels come from `SimdLevel::available`, so this CPU has the kernel's instructions.
        unsafe {
            kernel(Tile {
                depth,
                a: a.data.as_ptr().add(if depth > 0 { offset } else { 0 }),
                a_stride: a.stride,
                b: b.data.as_ptr(),
                b_stride: b.stride,
                c: c.as_mut_ptr().add(row * c_stride),
                c_stride,
                add,
            });
        }
    }
}

/// Computes `c = a b` like [`product`], for any number of columns.
pub fn wide_product(
    level: SimdLevel,
    (rows, columns, depth): (usize, usize, usize),
    a: Left<'_>,
    b: Right<'_>,
    c: &mut [f32],
    c_stride: usize,
) {
    for start in (0..columns).step_by(PANEL) {
        let (run, b) = (PANEL.min(columns - start), Right { data: &b.data[start..], ..b });
        product(level, (rows, run, depth), a, b, &mut c[start..], c_stride, false);
    }
}

/// Part of a product: pointers to the first elements of operands and result, and distances between their rows.
#[derive(Clone, Copy)]
struct Tile {
    depth: usize,
    a: *const f32,
    a_stride: usize,
    b: *const f32,
    b_stride: usize,
    c: *mut f32,
    c_stride: usize,
    /// Whether the product is added to the result.
    add: bool,
}

/// Function that computes [`STRIP`] rows.
type Kernel = unsafe fn(Tile);

fn kernel(level: SimdLevel, order: Order, groups: usize) -> Kernel {
    macro_rules! pick {
        ($module:ident) => {{
            use $module::tile;
            let all: [[Kernel; 3]; 3] = [
                [tile::<COLUMNS, 1>, tile::<COLUMNS, 2>, tile::<COLUMNS, 3>],
                [tile::<ROWS, 1>, tile::<ROWS, 2>, tile::<ROWS, 3>],
                [tile::<STRIPS, 1>, tile::<STRIPS, 2>, tile::<STRIPS, 3>],
            ];
            all[order as usize][groups - 1]
        }};
    }
    match level {
        #[cfg(target_arch = "x86_64")]
        SimdLevel::Avx512 => pick!(avx512),
        #[cfg(target_arch = "x86_64")]
        SimdLevel::Avx2 => pick!(avx2),
        _ => pick!(portable),
    }
}

/// Vector register of floats.
trait Vector: Copy {
    const LANES: usize;
    const LEVEL: SimdLevel;
    /// Returns a register with `x` in all lanes.
    unsafe fn splat(x: f32) -> Self;
    /// Loads `LANES` floats from `at`.
    unsafe fn load(at: *const f32) -> Self;
    /// Stores `LANES` floats to `at`.
    unsafe fn store(self, at: *mut f32);
    /// Returns `a * b + self`.
    unsafe fn add_product(self, a: Self, b: Self) -> Self;
}

/// Prefetch distance of weights in floats (measured).
const AHEAD: usize = 512;
/// Prefetch distance of weights in strips (measured).
const STRIPS_AHEAD: usize = 4;
/// Number of floats in a cache line.
pub const LINE: usize = 16;

/// Prefetches the cache line at `at`, which may be any address.
#[inline(always)]
fn prefetch(at: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing and cannot fail at any address; every x86-64 CPU has the instruction.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Prefetches floats, one cache line at a time.
#[inline]
pub fn prefetch_all(floats: &[f32]) {
    floats.chunks(LINE).for_each(|line| prefetch(line.as_ptr()));
}

/// Computes one step of the depth: `R` elements from `a`, `row` apart, times `C` registers from `b`. The smaller
/// operand is held in registers.
///
/// # Safety
/// The CPU has the instructions of `V`; at `a` are `R` floats `row` apart, at `b` the floats of `C` registers.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "`j` is a column of several arrays")]
unsafe fn step<V: Vector, const R: usize, const C: usize>(
    sums: &mut [[V; C]; R],
    a: *const f32,
    row: usize,
    b: *const f32,
) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        if R < C {
            let mut left = [V::splat(0.0); R];
            for (i, left) in left.iter_mut().enumerate() {
                *left = V::splat(*a.add(i * row));
            }
            for j in 0..C {
                let right = V::load(b.add(j * V::LANES));
                for i in 0..R {
                    sums[i][j] = sums[i][j].add_product(left[i], right);
                }
            }
        } else {
            let mut right = [V::splat(0.0); C];
            for (j, right) in right.iter_mut().enumerate() {
                *right = V::load(b.add(j * V::LANES));
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                let left = V::splat(*a.add(i * row));
                for (sum, right) in sums.iter_mut().zip(right) {
                    *sum = sum.add_product(left, right);
                }
            }
        }
    }
}

/// Computes `R` rows by `C` registers of the result.
///
/// # Safety
/// The CPU has the instructions of `V`, and the matrices of `tile` contain these rows and columns.
#[inline(always)]
unsafe fn registers<V: Vector, const ORDER: u8, const R: usize, const C: usize>(tile: Tile) {
    let Tile { depth, a, a_stride, b, b_stride, c, c_stride, add } = tile;
    // SAFETY: guaranteed by the caller; every offset below is that of an element of the tile, of row `k < depth` of
    // `b`, or of column `k` of `a`.
    unsafe {
        let mut sums = [[V::splat(0.0); C]; R];
        if add {
            for (i, row) in sums.iter_mut().enumerate() {
                for (j, sum) in row.iter_mut().enumerate() {
                    *sum = V::load(c.add(i * c_stride + j * V::LANES));
                }
            }
        }
        match ORDER {
            COLUMNS => {
                for k in 0..depth {
                    if V::LEVEL.prefetches() {
                        prefetch(a.wrapping_add(k * a_stride + AHEAD));
                    }
                    step(&mut sums, a.add(k * a_stride), 1, b.add(k * b_stride));
                }
            }
            ROWS => {
                for k in 0..depth {
                    step(&mut sums, a.add(k), a_stride, b.add(k * b_stride));
                }
            }
            _ => {
                for strip in 0..depth / STRIP {
                    for k in 0..STRIP {
                        if V::LEVEL.prefetches() && k % 2 == 0 {
                            prefetch(a.wrapping_add((strip + STRIPS_AHEAD) * a_stride + k * STRIP));
                        }
                        let b = b.add((strip * STRIP + k) * b_stride);
                        step(&mut sums, a.add(strip * a_stride + k), STRIP, b);
                    }
                }
            }
        }
        for (i, row) in sums.iter().enumerate() {
            for (j, sum) in row.iter().enumerate() {
                sum.store(c.add(i * c_stride + j * V::LANES));
            }
        }
    }
}

/// Defines a function that computes eight rows by `G` groups of columns from tiles that fit the registers. The
/// arguments are rows and registers of a tile for one, two and three groups (measured).
macro_rules! tiles {
    ($vector:ty, $feature:literal, $($groups:literal => $rows:literal x $registers:literal),*) => {
        /// See [`Kernel`](super::Kernel).
        ///
        /// # Safety
        /// See [`registers`].
        #[cfg_attr(target_arch = "x86_64", target_feature(enable = $feature))]
        pub unsafe fn tile<const ORDER: u8, const G: usize>(tile: Tile) {
            let row = match ORDER {
                COLUMNS => 1,
                ROWS => tile.a_stride,
                _ => STRIP,
            };
            $(if G == $groups {
                // The parts must cover exactly the tile.
                const {
                    assert!(STRIP % $rows == 0);
                    assert!($groups * GROUP % ($registers * <$vector as Vector>::LANES) == 0);
                }
                for i in (0..STRIP).step_by($rows) {
                    for column in (0..G * GROUP).step_by($registers * <$vector as Vector>::LANES) {
                        // SAFETY: guaranteed by the caller for the whole tile, of which this is a part.
                        unsafe {
                            registers::<$vector, ORDER, $rows, $registers>(Tile {
                                a: tile.a.add(i * row),
                                b: tile.b.add(column),
                                c: tile.c.add(i * tile.c_stride + column),
                                ..tile
                            });
                        }
                    }
                }
            })*
        }
    };
}

/// Implements [`Vector`] for a register type of x86-64.
#[cfg(target_arch = "x86_64")]
macro_rules! x86 {
    ($vector:ty, $lanes:literal, $level:ident, $splat:ident, $load:ident, $store:ident, $add_product:ident) => {
        use std::arch::x86_64::*;

        impl Vector for $vector {
            const LANES: usize = $lanes;
            const LEVEL: SimdLevel = SimdLevel::$level;
            #[inline(always)]
            unsafe fn splat(x: f32) -> Self {
                // SAFETY: all four functions are only called from functions compiled for these instructions.
                unsafe { $splat(x) }
            }
            #[inline(always)]
            unsafe fn load(at: *const f32) -> Self {
                // SAFETY: as for `splat`; the caller guarantees `LANES` floats at `at`.
                unsafe { $load(at) }
            }
            #[inline(always)]
            unsafe fn store(self, at: *mut f32) {
                // SAFETY: as for `splat` and `load`.
                unsafe { $store(at, self) }
            }
            #[inline(always)]
            unsafe fn add_product(self, a: Self, b: Self) -> Self {
                // SAFETY: as for `splat` and `load`.
                unsafe { $add_product(a, b, self) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::*;

    x86!(__m512, 16, Avx512, _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_fmadd_ps);
    tiles!(__m512, "avx512f", 1 => 8 x 1, 2 => 8 x 2, 3 => 8 x 3);
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::*;

    x86!(__m256, 8, Avx2, _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_fmadd_ps);
    tiles!(__m256, "avx2,fma", 1 => 4 x 2, 2 => 4 x 2, 3 => 2 x 6);
}

mod portable {
    use super::*;

    /// Four floats, which compilers keep in one register on most architectures.
    #[derive(Clone, Copy)]
    pub struct Four([f32; 4]);

    impl Vector for Four {
        const LANES: usize = 4;
        const LEVEL: SimdLevel = SimdLevel::Portable;
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            Self([x; 4])
        }
        #[inline(always)]
        unsafe fn load(at: *const f32) -> Self {
            // SAFETY: the caller guarantees four floats at `at`; an array of floats has the alignment of a float.
            unsafe { Self(at.cast::<[f32; 4]>().read()) }
        }
        #[inline(always)]
        unsafe fn store(self, at: *mut f32) {
            // SAFETY: as for `load`.
            unsafe { at.cast::<[f32; 4]>().write(self.0) }
        }
        #[inline(always)]
        unsafe fn add_product(self, a: Self, b: Self) -> Self {
            Self(std::array::from_fn(|i| self.0[i] + a.0[i] * b.0[i]))
        }
    }

    tiles!(Four, "sse2", 1 => 4 x 2, 2 => 4 x 2, 3 => 4 x 2);
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use rand_distr::StandardNormal;

    fn random(rng: &mut ChaCha8Rng, count: usize) -> Vec<f32> {
        (0..count).map(|_| rng.sample(StandardNormal)).collect()
    }

    #[test]
    fn every_level_order_and_width_agrees_with_a_plain_product() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        for (rows, columns, depth) in
            [(8, 48, 64usize), (16, 5, 24), (24, 17, 8), (8, 33, 205), (8, 16, 1), (16, 48, 0)]
        {
            for order in [Order::Columns, Order::Rows, Order::Strips] {
                if order == Order::Strips && !depth.is_multiple_of(STRIP) {
                    continue;
                }
                let stride = match order {
                    Order::Columns => rows + 3,
                    Order::Rows => depth + 5,
                    Order::Strips => rows * STRIP + 16,
                };
                let at = |row: usize, k: usize| match order {
                    Order::Columns => k * stride + row,
                    Order::Rows => row * stride + k,
                    Order::Strips => k / STRIP * stride + row * STRIP + k % STRIP,
                };
                let a = random(&mut rng, stride * rows.max(depth) + rows * STRIP);
                let b = random(&mut rng, depth * 50 + 48);
                let before = random(&mut rng, rows * 52);
                let mut fused: Option<[Vec<f32>; 2]> = None;
                for level in SimdLevel::available() {
                    let mut results = [before.clone(), before.clone()];
                    for (c, add) in results.iter_mut().zip([false, true]) {
                        let (left, right) =
                            (Left { data: &a, order, stride }, Right { data: &b, stride: 50 });
                        product(level, (rows, columns, depth), left, right, c, 52, add);
                        for (row, column) in (0..rows).flat_map(|row| (0..columns).map(move |c| (row, c))) {
                            let start = if add { before[row * 52 + column] as f64 } else { 0.0 };
                            let terms = (0..depth).map(|k| a[at(row, k)] as f64 * b[k * 50 + column] as f64);
                            let exact = terms.fold(start, |sum, term| sum + term);
                            let found = c[row * 52 + column] as f64;
                            assert!((found - exact).abs() < 1e-4, "{level:?} {order:?} {found} {exact}");
                        }
                        // Nothing is written beyond the last group of columns.
                        let beyond = columns.div_ceil(GROUP) * GROUP;
                        assert!((0..rows).all(|row| c[row * 52 + beyond..][..52 - beyond]
                            == before[row * 52 + beyond..][..52 - beyond]));
                    }
                    if level != SimdLevel::Portable {
                        let first = fused.get_or_insert_with(|| results.clone());
                        assert!(*first == results, "{level:?} {order:?}: bits differ from another level's");
                    }
                }
            }
        }
    }
}
