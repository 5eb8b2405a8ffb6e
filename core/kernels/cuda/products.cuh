// Matrix products of attention in three precisions, with one interface:
//
//   Exact   float32 by fused multiply-add
//   Tf32    float32 in memory, products on tensor cores with 11 significant bits
//   Bf16    bfloat16 in memory, products on tensor cores
//
// Sums are float32. A warp computes 16 rows of every product. Each lane holds values of LANE_ROWS rows, `row(i)`;
// ROW_LANES neighbouring lanes divide the columns of a row. Two kinds of matrices are distributed over the lanes:
//
//   scores    16 x COLUMNS    values[i][j] is (row(i), score_column(j))    COLUMNS / ROW_LANES values j
//   outputs   16 x P          values[i][j] is (row(i), output_column(j))   P / ROW_LANES values j
//
// Operands are in shared memory, in rows of P elements that begin STRIDE<P> apart, aligned to 16 bytes. The padding of
// the stride puts the rows that a warp reads at once into different banks.
//
//   stored(x)                       value stored in shared memory for x, an element or a vector of elements
//   FORWARD_, BACKWARD_BLOCKS       blocks that a multiprocessor must hold at once (__launch_bounds__), which limits
//                                   the registers of a thread: 4 blocks to 128, 3 blocks to 168
//   scores<P>(c, a, b)              c = a bᵀ     a: 16 rows of the warp; b: COLUMNS rows
//   accumulate<P>(o, w, b, space)   o += w b     w: scores; b: COLUMNS rows; space: SPACE<COLUMNS> floats of the warp
#pragma once

#include "tensor_core.cuh"

constexpr int WARP_ROWS = 16;

__device__ inline int lane() { return threadIdx.x % 32; }

struct Exact {
    using Element = float;
    static constexpr int LANE_ROWS = 4, ROW_LANES = 8;
    template <int P> static constexpr int STRIDE = P + 4;
    /// Columns of a block of scores, in the forward and the backward pass.
    template <int P> static constexpr int FORWARD = P <= 64 ? 32 : 16;
    template <int P> static constexpr int BACKWARD = P <= 64 ? 32 : 16;
    template <int P> static constexpr int FORWARD_BLOCKS = P <= 96 ? 3 : 2;
    template <int P> static constexpr int BACKWARD_BLOCKS = 1;
    template <int COLUMNS> static constexpr int SPACE_STRIDE = COLUMNS + 4;
    template <int COLUMNS> static constexpr int SPACE = WARP_ROWS * SPACE_STRIDE<COLUMNS>;

    static __device__ int row(int i) { return lane() / ROW_LANES + 4 * i; }
    static __device__ int score_column(int j) { return lane() % ROW_LANES + ROW_LANES * j; }
    /// Returns column `j`. Groups of four are neighbours, read in one load.
    static __device__ int output_column(int j) { return j / 4 * 32 + lane() % ROW_LANES * 4 + j % 4; }
    template <class X> static __device__ X stored(X x) { return x; }

    template <int P, int N> static __device__ void scores(float (&c)[LANE_ROWS][N], const float* a, const float* b) {
#pragma unroll
        for (int i = 0; i < LANE_ROWS; ++i) {
#pragma unroll
            for (int j = 0; j < N; ++j) c[i][j] = 0.0f;
        }
#pragma unroll 2
        for (int k = 0; k < P; k += 4) {
            float left[LANE_ROWS][4];
#pragma unroll
            for (int i = 0; i < LANE_ROWS; ++i) load(a + row(i) * STRIDE<P> + k, left[i]);
#pragma unroll
            for (int j = 0; j < N; ++j) {
                float right[4];
                load(b + score_column(j) * STRIDE<P> + k, right);
#pragma unroll
                for (int i = 0; i < LANE_ROWS; ++i) {
#pragma unroll
                    for (int e = 0; e < 4; ++e) c[i][j] = fmaf(left[i][e], right[e], c[i][j]);
                }
            }
        }
    }

    /// Computes `o += w b`. The scores `w` pass through `space`, because a lane needs whole rows of them.
    template <int P, int N>
    static __device__ void accumulate(float (&o)[LANE_ROWS][P / ROW_LANES], const float (&w)[LANE_ROWS][N],
                                      const float* b, float* space) {
        constexpr int COLUMNS = N * ROW_LANES;
        __syncwarp();
#pragma unroll
        for (int i = 0; i < LANE_ROWS; ++i) {
#pragma unroll
            for (int j = 0; j < N; ++j) space[row(i) * SPACE_STRIDE<COLUMNS> + score_column(j)] = w[i][j];
        }
        __syncwarp();
#pragma unroll 2
        for (int k = 0; k < COLUMNS; k += 4) {
            float left[LANE_ROWS][4];
#pragma unroll
            for (int i = 0; i < LANE_ROWS; ++i) load(space + row(i) * SPACE_STRIDE<COLUMNS> + k, left[i]);
#pragma unroll
            for (int e = 0; e < 4; ++e) {
#pragma unroll
                for (int j = 0; j < P / ROW_LANES; j += 4) {
                    float right[4];
                    load(b + (k + e) * STRIDE<P> + output_column(j), right);
#pragma unroll
                    for (int i = 0; i < LANE_ROWS; ++i) {
#pragma unroll
                        for (int r = 0; r < 4; ++r) o[i][j + r] = fmaf(left[i][e], right[r], o[i][j + r]);
                    }
                }
            }
        }
    }
};

/// Layout of results over the lanes, shared by both precisions on tensor cores.
struct TensorCore {
    static constexpr int LANE_ROWS = 2, ROW_LANES = 4;
    template <int P> static constexpr int FORWARD_BLOCKS = P <= 64 ? 4 : P <= 96 ? 3 : 2;
    template <int P> static constexpr int BACKWARD_BLOCKS = P <= 64 ? 3 : 2;
    template <int COLUMNS> static constexpr int SPACE = 0;

    static __device__ int row(int i) { return lane() / 4 + 8 * i; }
    static __device__ int score_column(int j) { return j / 2 * 8 + lane() % 4 * 2 + j % 2; }
    static __device__ int output_column(int j) { return score_column(j); }

    /// Adds a 16 x 8 product to the eight columns from `8 n` on.
    template <int N, class F> static __device__ void add_to(float (&c)[LANE_ROWS][N], int n, F product) {
        float part[4] = {c[0][2 * n], c[0][2 * n + 1], c[1][2 * n], c[1][2 * n + 1]};
        product(part);
        c[0][2 * n] = part[0], c[0][2 * n + 1] = part[1], c[1][2 * n] = part[2], c[1][2 * n + 1] = part[3];
    }

    template <int N> static __device__ void clear(float (&c)[LANE_ROWS][N]) {
#pragma unroll
        for (int j = 0; j < N; ++j) c[0][j] = c[1][j] = 0.0f;
    }
};

struct Tf32 : TensorCore {
    using Element = float;
    template <int P> static constexpr int STRIDE = P + 4;
    template <int P> static constexpr int FORWARD = P <= 64 ? 32 : 16;
    template <int P> static constexpr int BACKWARD = P <= 64 ? 32 : 16;

    static __device__ float stored(float x) { return to_tf32(x); }
    static __device__ uint4 stored(uint4 x) {
        float values[4];
        memcpy(values, &x, sizeof x);
        for (float& value : values) value = to_tf32(value);
        memcpy(&x, values, sizeof x);
        return x;
    }

    template <int P, int N> static __device__ void scores(float (&c)[LANE_ROWS][N], const float* a, const float* b) {
        const int g = lane() / 4, t = lane() % 4;
        clear(c);
#pragma unroll
        for (int k = 0; k < P; k += 8) {
            const float* from = a + g * STRIDE<P> + k + t;
            const float left[4] = {from[0], from[8 * STRIDE<P>], from[4], from[8 * STRIDE<P> + 4]};
#pragma unroll
            for (int n = 0; n < N / 2; ++n) {
                const float* right = b + (8 * n + g) * STRIDE<P> + k + t;
                add_to(c, n, [&](float(&part)[4]) { mma_tf32(part, left, right[0], right[4]); });
            }
        }
    }

    /// Computes `o += w b`. A lane holds columns 2t and 2t + 1 of the scores, but the instruction expects t and t + 4.
    /// The order of a sum is free, so a lane passes its columns as t and t + 4, with the same rows of `b`.
    template <int P, int N>
    static __device__ void accumulate(float (&o)[LANE_ROWS][P / ROW_LANES], const float (&w)[LANE_ROWS][N],
                                      const float* b, float*) {
        const int g = lane() / 4, t = lane() % 4;
#pragma unroll
        for (int k = 0; k < N / 2; ++k) {
            const float left[4] = {to_tf32(w[0][2 * k]), to_tf32(w[1][2 * k]), to_tf32(w[0][2 * k + 1]),
                                   to_tf32(w[1][2 * k + 1])};
#pragma unroll
            for (int n = 0; n < P / 8; ++n) {
                const float* right = b + (8 * k + 2 * t) * STRIDE<P> + 8 * n + g;
                add_to(o, n, [&](float(&part)[4]) { mma_tf32(part, left, right[0], right[STRIDE<P>]); });
            }
        }
    }
};

struct Bf16 : TensorCore {
    using Element = bf16;
    template <int P> static constexpr int STRIDE = P + 8;
    template <int P> static constexpr int FORWARD = 64;
    template <int P> static constexpr int BACKWARD = 32;

    template <class X> static __device__ X stored(X x) { return x; }

    template <int P, int N> static __device__ void scores(float (&c)[LANE_ROWS][N], const bf16* a, const bf16* b) {
        const int l = lane();
        clear(c);
#pragma unroll
        for (int k = 0; k < P; k += 16) {
            unsigned left[4];
            load_matrices(left, a + l % 16 * STRIDE<P> + k + l / 16 * 8);
#pragma unroll
            for (int n = 0; n < N / 2; n += 2) {
                unsigned right[4]; // eight rows of b from 8 n on, in two halves, then eight rows from 8 (n + 1) on
                load_matrices(right, b + (8 * n + l / 16 * 8 + l % 8) * STRIDE<P> + k + l / 8 % 2 * 8);
                add_to(c, n, [&](float(&part)[4]) { mma_bf16(part, left, right[0], right[1]); });
                add_to(c, n + 1, [&](float(&part)[4]) { mma_bf16(part, left, right[2], right[3]); });
            }
        }
    }

    /// Computes `o += w b`. A lane already holds the scores that the instruction expects of it, and only rounds them.
    template <int P, int N>
    static __device__ void accumulate(float (&o)[LANE_ROWS][P / ROW_LANES], const float (&w)[LANE_ROWS][N],
                                      const bf16* b, float*) {
        const int l = lane();
#pragma unroll
        for (int k = 0; k < N / 4; ++k) {
            const unsigned left[4] = {pack(w[0][4 * k], w[0][4 * k + 1]), pack(w[1][4 * k], w[1][4 * k + 1]),
                                      pack(w[0][4 * k + 2], w[0][4 * k + 3]), pack(w[1][4 * k + 2], w[1][4 * k + 3])};
#pragma unroll
            for (int n = 0; n < P / 8; n += 2) {
                unsigned right[4];
                load_transposed(right, b + (16 * k + l % 16) * STRIDE<P> + 8 * n + l / 16 * 8);
                add_to(o, n, [&](float(&part)[4]) { mma_bf16(part, left, right[0], right[1]); });
                add_to(o, n + 1, [&](float(&part)[4]) { mma_bf16(part, left, right[2], right[3]); });
            }
        }
    }
};
