// Multi-head attention with injected keys and values, forward and backward, without scores in memory.
//
//   qkv     (B, N, 3D)  queries, keys and values of the tokens, concatenated; D = heads * head_dim
//   extra   (B, E, 2D)  injected keys and values, before those of the tokens; null if E = 0
//   y, dy   (B, N, D)   outputs of the heads, concatenated
//   lse     (B, H, N)   float32: the logarithm of the sum of each row's exponentials
//   delta   (B, H, N)   float32: rowsum(y ∘ dy) of each head
//
// With S = scale q kᵀ and A = softmax(S) = exp(S - lse): y = A v, and backward dV = Aᵀ dy, dS = A ∘ (dy vᵀ - delta),
// dQ = scale dS k, dK = scale dSᵀ q. The backward pass recomputes A twice: once with rows of queries in a block, for
// dQ, and once with rows of keys, for dK and dV. Each sum is computed by one warp without atomic additions, so results
// are the same in every run.
//
// The forward kernel and both backward kernels have one structure. A block holds 64 rows of queries or keys (16 per
// warp) of one head in shared memory and iterates over tiles of keys or queries: scores of the warp's rows with the
// tile, then sums weighted by the scores. products.cuh contains the matrix products in three precisions; this file
// processes the scores.
//
// Launch contract, with T = f32, tf32 or bf16 and P = 32, 64, 96 or 128, the smallest that is >= head_dim (tiles are
// padded with zeros). Blocks of 128 threads.
//
//   entry point                      grid                            shared memory in bytes
//   attention_forward_T_P            ceil(N / 64), heads, batch      e s (64 + 2 F) + w(F)
//   attention_backward_queries_T_P   ceil(N / 64), heads, batch      e s (128 + 2 G) + w(G)
//   attention_backward_keys_T_P      ceil((E + N) / 64), heads, batch   e s (128 + 2 G) + w(G) + 8 G
//   attention_delta_T (f32, bf16)    ceil(B N H / 16)                0
//
// e: bytes of an element; s: elements from row to row; F, G: columns of a tile, forward and backward; w: warps' space.
//
//   bf16: e = 2, s = P + 8, F = 64, G = 32, w = 0
//   tf32: e = 4, s = P + 4, F = G = 32 for P <= 64, else 16, w = 0
//   f32:  as tf32, but w(C) = 256 (C + 4)
//
// Shared memory above 48 KiB must be allowed first (CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES). Tensors are
// contiguous and do not overlap. Loads are fast if all tensors are aligned to 16 bytes and head_dim is a multiple of
// 16 bytes; otherwise results are the same. batch, heads <= 65535, and an image of qkv or extra has fewer than 2^32
// elements.

#include "products.cuh"

namespace {

constexpr int WARPS = 4, ROWS = WARP_ROWS * WARPS, THREADS = 32 * WARPS;
constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.69314718055994531f;

/// Location of the rows of one head of one image. Offsets within an image have 32 bits, which saves registers.
template <class T> struct Head {
    T *own, *injected; // first query of the tokens, first injected key
    unsigned tokens, extra, width;
    bool vectors; // whether rows can be copied in 16-byte pieces

    __device__ Head(T* qkv, T* injected_kv, unsigned tokens, unsigned extra, unsigned heads, unsigned head_dim)
        : tokens(tokens), extra(extra), width(heads * head_dim) {
        const size image = blockIdx.z, head = blockIdx.y;
        own = qkv + image * tokens * 3 * width + head * head_dim;
        injected = extra > 0 ? injected_kv + image * extra * 2 * width + head * head_dim : nullptr;
        vectors = head_dim % VECTOR<T> == 0 && aligned(qkv) && aligned(injected);
    }

    __device__ unsigned keys() const { return extra + tokens; }
    __device__ T* query(unsigned row) const { return row < tokens ? own + row * 3 * width : nullptr; }
    __device__ T* key(unsigned row) const { return key_or_value(row, 1); }
    __device__ T* value(unsigned row) const { return key_or_value(row, 2); }

  private:
    __device__ T* key_or_value(unsigned row, unsigned part) const {
        if (row < extra) return injected + row * 2 * width + (part - 1) * width;
        return row < keys() ? own + (row - extra) * 3 * width + part * width : nullptr;
    }
};

/// Location of the rows of `y` or `dy`.
template <class T> struct Output {
    T* own;
    unsigned tokens, width;
    bool vectors;

    __device__ Output(T* y, unsigned tokens, unsigned heads, unsigned head_dim)
        : tokens(tokens), width(heads * head_dim) {
        own = y + blockIdx.z * static_cast<size>(tokens) * width + blockIdx.y * head_dim;
        vectors = head_dim % VECTOR<T> == 0 && aligned(y);
    }

    __device__ T* row(unsigned row) const { return row < tokens ? own + row * width : nullptr; }
};

/// Returns the start of this block's head in `lse` or `delta`.
template <class T> __device__ T* of_head(T* rows, unsigned tokens) {
    return rows + (blockIdx.z * static_cast<size>(gridDim.y) + blockIdx.y) * tokens;
}

/// Copies `COUNT` rows `row(r)` of `head_dim` elements to shared memory, with all threads of the block. A null row
/// becomes zeros.
template <class A, int P, int COUNT, class T, class F>
__device__ void load_tile(T* tile, unsigned head_dim, bool vectors, F row) {
    constexpr int V = VECTOR<T>, PIECES = P / V, S = A::template STRIDE<P>;
    if (vectors) {
        static_assert(COUNT * PIECES % THREADS == 0);
#pragma unroll 4
        for (int step = 0; step < COUNT * PIECES / THREADS; ++step) {
            const int i = step * THREADS + threadIdx.x;
            const T* from = row(i / PIECES);
            const unsigned column = i % PIECES * V;
            uint4 piece = {0, 0, 0, 0};
            if (from && column < head_dim) piece = *reinterpret_cast<const uint4*>(from + column);
            *reinterpret_cast<uint4*>(tile + i / PIECES * S + column) = A::stored(piece);
        }
    } else {
#pragma unroll 1
        for (int i = threadIdx.x; i < COUNT * P; i += THREADS) {
            const T* from = row(i / P);
            const unsigned column = i % P;
            const T element = from && column < head_dim ? from[column] : from_float<T>(0.0f);
            tile[i / P * S + column] = A::stored(element);
        }
    }
}

/// Writes the warp's 16 rows of `values` times `factor` to `row(r)`, unless that is null. The values pass through the
/// warp's own rows of `tile`, which no other warp reads.
template <class A, int P, class T, class F>
__device__ void store_rows(T* tile, const float (&values)[A::LANE_ROWS][P / A::ROW_LANES],
                           const float (&factor)[A::LANE_ROWS], unsigned head_dim, bool vectors, F row) {
    constexpr int V = VECTOR<T>, PIECES = P / V, S = A::template STRIDE<P>;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < A::LANE_ROWS; ++i) {
#pragma unroll
        for (int j = 0; j < P / A::ROW_LANES; ++j) {
            tile[A::row(i) * S + A::output_column(j)] = from_float<T>(values[i][j] * factor[i]);
        }
    }
    __syncwarp();
    if (vectors) {
        for (int i = lane(); i < WARP_ROWS * PIECES; i += 32) {
            T* to = row(i / PIECES);
            const unsigned column = i % PIECES * V;
            const T* from = tile + i / PIECES * S + column;
            if (to && column < head_dim) {
                *reinterpret_cast<uint4*>(to + column) = *reinterpret_cast<const uint4*>(from);
            }
        }
    } else {
#pragma unroll 1
        for (int i = lane(); i < WARP_ROWS * P; i += 32) {
            T* to = row(i / P);
            const unsigned column = i % P;
            if (to && column < head_dim) to[column] = tile[i / P * S + column];
        }
    }
}

/// Index of the block's first row, index of the warp in the block, and index of the warp's first row.
struct Place {
    unsigned block_row = blockIdx.x * ROWS, warp = threadIdx.x / 32, warp_row = block_row + warp * WARP_ROWS;
};

template <class A, int P>
__device__ void forward(const typename A::Element* qkv, const typename A::Element* extra, typename A::Element* y,
                        float* lse, unsigned tokens, unsigned extra_rows, unsigned heads, unsigned head_dim,
                        float scale) {
    using T = typename A::Element;
    constexpr int S = A::template STRIDE<P>, COLUMNS = A::template FORWARD<P>, N = COLUMNS / A::ROW_LANES;
    constexpr int R = A::LANE_ROWS;
    const Head<const T> head(qkv, extra, tokens, extra_rows, heads, head_dim);
    const Output<T> output(y, tokens, heads, head_dim);
    const Place place;

    T* const q = reinterpret_cast<T*>(dynamic_shared());
    T* const k = q + ROWS * S;
    T* const v = k + COLUMNS * S;
    T* const own_q = q + place.warp * WARP_ROWS * S;
    float* const space = reinterpret_cast<float*>(v + COLUMNS * S) + place.warp * A::template SPACE<COLUMNS>;
    load_tile<A, P, ROWS>(q, head_dim, head.vectors, [&](int r) { return head.query(place.block_row + r); });

    // Online softmax in powers of two: `top` is the largest score so far, which is subtracted from all scores; `sum`
    // is this lane's part of the row's sum.
    const float scale_2 = scale * LOG2_E;
    float top[R], sum[R], out[R][P / A::ROW_LANES];
#pragma unroll
    for (int i = 0; i < R; ++i) {
        top[i] = -INFINITY;
        sum[i] = 0.0f;
#pragma unroll
        for (int j = 0; j < P / A::ROW_LANES; ++j) out[i][j] = 0.0f;
    }

    for (unsigned first = 0; first < head.keys(); first += COLUMNS) {
        __syncthreads();
        load_tile<A, P, COLUMNS>(k, head_dim, head.vectors, [&](int r) { return head.key(first + r); });
        load_tile<A, P, COLUMNS>(v, head_dim, head.vectors, [&](int r) { return head.value(first + r); });
        __syncthreads();
        if (place.warp_row >= tokens) continue;

        float weights[R][N];
        A::template scores<P>(weights, own_q, k);
#pragma unroll
        for (int i = 0; i < R; ++i) {
            float highest = top[i];
#pragma unroll
            for (int j = 0; j < N; ++j) {
                const bool valid = first + A::score_column(j) < head.keys();
                weights[i][j] = valid ? weights[i][j] * scale_2 : -INFINITY;
                highest = fmaxf(highest, weights[i][j]);
            }
            highest = max_over<A::ROW_LANES>(highest);
            const float rescale = exp2f(top[i] - highest);
            top[i] = highest;
            sum[i] *= rescale;
#pragma unroll
            for (int j = 0; j < N; ++j) {
                weights[i][j] = exp2f(weights[i][j] - highest);
                sum[i] += weights[i][j];
            }
#pragma unroll
            for (int j = 0; j < P / A::ROW_LANES; ++j) out[i][j] *= rescale;
        }
        A::template accumulate<P>(out, weights, v, space);
    }
    if (place.warp_row >= tokens) return;

    float inverse[R];
#pragma unroll
    for (int i = 0; i < R; ++i) {
        const float total = sum_over<A::ROW_LANES>(sum[i]);
        inverse[i] = 1.0f / total;
        const unsigned row = place.warp_row + A::row(i);
        if (row < tokens && lane() % A::ROW_LANES == 0) {
            of_head(lse, tokens)[row] = (top[i] + log2f(total)) * LN_2;
        }
    }
    store_rows<A, P>(own_q, out, inverse, head_dim, output.vectors,
                     [&](int r) { return output.row(place.warp_row + r); });
}

template <class A, int P>
__device__ void backward_queries(const typename A::Element* qkv, const typename A::Element* extra,
                                 const typename A::Element* dy, const float* lse, const float* delta,
                                 typename A::Element* d_qkv, unsigned tokens, unsigned extra_rows, unsigned heads,
                                 unsigned head_dim, float scale) {
    using T = typename A::Element;
    constexpr int S = A::template STRIDE<P>, COLUMNS = A::template BACKWARD<P>, N = COLUMNS / A::ROW_LANES;
    constexpr int R = A::LANE_ROWS;
    const Head<const T> head(qkv, extra, tokens, extra_rows, heads, head_dim);
    const Head<T> gradient(d_qkv, nullptr, tokens, 0, heads, head_dim);
    const Output<const T> output(dy, tokens, heads, head_dim);
    const Place place;

    T* const q = reinterpret_cast<T*>(dynamic_shared());
    T* const g = q + ROWS * S;
    T* const k = g + ROWS * S;
    T* const v = k + COLUMNS * S;
    T* const own_q = q + place.warp * WARP_ROWS * S;
    T* const own_g = g + place.warp * WARP_ROWS * S;
    float* const space = reinterpret_cast<float*>(v + COLUMNS * S) + place.warp * A::template SPACE<COLUMNS>;
    load_tile<A, P, ROWS>(q, head_dim, head.vectors, [&](int r) { return head.query(place.block_row + r); });
    load_tile<A, P, ROWS>(g, head_dim, output.vectors, [&](int r) { return output.row(place.block_row + r); });

    const float scale_2 = scale * LOG2_E;
    float lse_2[R], mean[R], factor[R], dq[R][P / A::ROW_LANES];
#pragma unroll
    for (int i = 0; i < R; ++i) {
        const unsigned row = place.warp_row + A::row(i);
        lse_2[i] = row < tokens ? of_head(lse, tokens)[row] * LOG2_E : 0.0f;
        mean[i] = row < tokens ? of_head(delta, tokens)[row] : 0.0f;
        factor[i] = scale;
#pragma unroll
        for (int j = 0; j < P / A::ROW_LANES; ++j) dq[i][j] = 0.0f;
    }

    for (unsigned first = 0; first < head.keys(); first += COLUMNS) {
        __syncthreads();
        load_tile<A, P, COLUMNS>(k, head_dim, head.vectors, [&](int r) { return head.key(first + r); });
        load_tile<A, P, COLUMNS>(v, head_dim, head.vectors, [&](int r) { return head.value(first + r); });
        __syncthreads();
        if (place.warp_row >= tokens) continue;

        float weights[R][N], d_scores[R][N];
        A::template scores<P>(weights, own_q, k);
        A::template scores<P>(d_scores, own_g, v);
#pragma unroll
        for (int i = 0; i < R; ++i) {
#pragma unroll
            for (int j = 0; j < N; ++j) {
                // Padding beyond the last key has score 0. If the row's scores are far below 0, exp2f would overflow.
                const bool valid = first + A::score_column(j) < head.keys();
                const float weight = valid ? exp2f(weights[i][j] * scale_2 - lse_2[i]) : 0.0f;
                d_scores[i][j] = weight * (d_scores[i][j] - mean[i]);
            }
        }
        A::template accumulate<P>(dq, d_scores, k, space);
    }
    if (place.warp_row >= tokens) return;
    store_rows<A, P>(own_q, dq, factor, head_dim, gradient.vectors,
                     [&](int r) { return gradient.query(place.warp_row + r); });
}

template <class A, int P>
__device__ void backward_keys(const typename A::Element* qkv, const typename A::Element* extra,
                              const typename A::Element* dy, const float* lse, const float* delta,
                              typename A::Element* d_qkv, typename A::Element* d_extra, unsigned tokens,
                              unsigned extra_rows, unsigned heads, unsigned head_dim, float scale) {
    using T = typename A::Element;
    constexpr int S = A::template STRIDE<P>, COLUMNS = A::template BACKWARD<P>, N = COLUMNS / A::ROW_LANES;
    constexpr int R = A::LANE_ROWS;
    const Head<const T> head(qkv, extra, tokens, extra_rows, heads, head_dim);
    const Head<T> gradient(d_qkv, d_extra, tokens, extra_rows, heads, head_dim);
    const Output<const T> output(dy, tokens, heads, head_dim);
    const Place place;

    T* const k = reinterpret_cast<T*>(dynamic_shared());
    T* const v = k + ROWS * S;
    T* const q = v + ROWS * S;
    T* const g = q + COLUMNS * S;
    float* const lse_2 = reinterpret_cast<float*>(g + COLUMNS * S);
    float* const mean = lse_2 + COLUMNS;
    float* const space = mean + COLUMNS + place.warp * A::template SPACE<COLUMNS>;
    T* const own_k = k + place.warp * WARP_ROWS * S;
    T* const own_v = v + place.warp * WARP_ROWS * S;
    load_tile<A, P, ROWS>(k, head_dim, head.vectors, [&](int r) { return head.key(place.block_row + r); });
    load_tile<A, P, ROWS>(v, head_dim, head.vectors, [&](int r) { return head.value(place.block_row + r); });

    const float scale_2 = scale * LOG2_E;
    float scales[R], ones[R], dk[R][P / A::ROW_LANES], dv[R][P / A::ROW_LANES];
#pragma unroll
    for (int i = 0; i < R; ++i) {
        scales[i] = scale;
        ones[i] = 1.0f;
#pragma unroll
        for (int j = 0; j < P / A::ROW_LANES; ++j) dk[i][j] = dv[i][j] = 0.0f;
    }

    for (unsigned first = 0; first < tokens; first += COLUMNS) {
        __syncthreads();
        load_tile<A, P, COLUMNS>(q, head_dim, head.vectors, [&](int r) { return head.query(first + r); });
        load_tile<A, P, COLUMNS>(g, head_dim, output.vectors, [&](int r) { return output.row(first + r); });
        if (threadIdx.x < COLUMNS) {
            // Beyond the last query, q and dy are zeros and add zero for any weights.
            const unsigned row = first + threadIdx.x;
            lse_2[threadIdx.x] = row < tokens ? of_head(lse, tokens)[row] * LOG2_E : 0.0f;
            mean[threadIdx.x] = row < tokens ? of_head(delta, tokens)[row] : 0.0f;
        }
        __syncthreads();
        if (place.warp_row >= head.keys()) continue;

        // Transposed scores: rows are keys, columns are queries.
        float weights[R][N], d_scores[R][N];
        A::template scores<P>(weights, own_k, q);
        A::template scores<P>(d_scores, own_v, g);
#pragma unroll
        for (int j = 0; j < N; ++j) {
            const int column = A::score_column(j);
#pragma unroll
            for (int i = 0; i < R; ++i) {
                weights[i][j] = exp2f(weights[i][j] * scale_2 - lse_2[column]);
                d_scores[i][j] = weights[i][j] * (d_scores[i][j] - mean[column]);
            }
        }
        A::template accumulate<P>(dv, weights, g, space);
        A::template accumulate<P>(dk, d_scores, q, space);
    }
    if (place.warp_row >= head.keys()) return;
    store_rows<A, P>(own_k, dk, scales, head_dim, gradient.vectors,
                     [&](int r) { return gradient.key(place.warp_row + r); });
    store_rows<A, P>(own_v, dv, ones, head_dim, gradient.vectors,
                     [&](int r) { return gradient.value(place.warp_row + r); });
}

/// Computes `rowsum(y ∘ dy)` with eight lanes per row and head. Rows have the order (B, N, H), sums (B, H, N).
template <class T>
__device__ void row_products(const T* y, const T* dy, float* delta, unsigned batch, unsigned tokens, unsigned heads,
                             unsigned head_dim) {
    constexpr unsigned LANES = 8;
    constexpr int V = VECTOR<T>;
    const size row = (blockIdx.x * static_cast<size>(THREADS) + threadIdx.x) / LANES;
    const bool valid = row < static_cast<size>(batch) * tokens * heads;
    const unsigned member = threadIdx.x % LANES;
    const T *own_y = y + row * head_dim, *own_dy = dy + row * head_dim;
    float sum = 0.0f;
    if (valid && head_dim % V == 0 && aligned(y) && aligned(dy)) {
        for (unsigned column = member * V; column < head_dim; column += LANES * V) {
            float left[V], right[V];
            load(own_y + column, left);
            load(own_dy + column, right);
#pragma unroll
            for (int e = 0; e < V; ++e) sum = fmaf(left[e], right[e], sum);
        }
    } else if (valid) {
        for (unsigned column = member; column < head_dim; column += LANES) {
            sum = fmaf(to_float(own_y[column]), to_float(own_dy[column]), sum);
        }
    }
    sum = sum_over<LANES>(sum);
    if (valid && member == 0) {
        const size token = row / heads, head = row % heads;
        delta[(token / tokens * heads + head) * tokens + token % tokens] = sum;
    }
}

} // namespace

#define ENTRY(BLOCKS) extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)

#define DELTA(T, NAME)                                                                                                 \
    /** `delta = rowsum(y ∘ dy)` of each head. */                                                                      \
    ENTRY(4) attention_delta_##NAME(const T* y, const T* dy, float* delta, unsigned batch, unsigned tokens,            \
                                 unsigned heads, unsigned head_dim) {                                                  \
        row_products<T>(y, dy, delta, batch, tokens, heads, head_dim);                                                 \
    }

DELTA(float, f32)
DELTA(bf16, bf16)

#define ATTENTION(T, A, NAME, P)                                                                                       \
    /** Writes `y` and `lse`. */                                                                                       \
    ENTRY(A::FORWARD_BLOCKS<P>) attention_forward_##NAME##_##P(                                                        \
        const T* qkv, const T* extra, T* y, float* lse, unsigned, unsigned tokens, unsigned extra_rows,                \
        unsigned heads, unsigned head_dim, float scale) {                                                              \
        forward<A, P>(qkv, extra, y, lse, tokens, extra_rows, heads, head_dim, scale);                                 \
    }                                                                                                                  \
    /** Writes the queries' part of `d_qkv`. */                                                                        \
    ENTRY(A::BACKWARD_BLOCKS<P>) attention_backward_queries_##NAME##_##P(                                              \
        const T* qkv, const T* extra, const T* dy, const float* lse, const float* delta, T* d_qkv, unsigned,           \
        unsigned tokens, unsigned extra_rows, unsigned heads, unsigned head_dim, float scale) {                        \
        backward_queries<A, P>(qkv, extra, dy, lse, delta, d_qkv, tokens, extra_rows, heads, head_dim, scale);         \
    }                                                                                                                  \
    /** Writes the keys' and values' parts of `d_qkv`, and all of `d_extra`. */                                        \
    ENTRY(A::BACKWARD_BLOCKS<P>) attention_backward_keys_##NAME##_##P(                                                 \
        const T* qkv, const T* extra, const T* dy, const float* lse, const float* delta, T* d_qkv, T* d_extra,         \
        unsigned, unsigned tokens, unsigned extra_rows, unsigned heads, unsigned head_dim, float scale) {              \
        backward_keys<A, P>(qkv, extra, dy, lse, delta, d_qkv, d_extra, tokens, extra_rows, heads, head_dim, scale);   \
    }

#define WIDTHS(T, A, NAME)                                                                                             \
    ATTENTION(T, A, NAME, 32)                                                                                          \
    ATTENTION(T, A, NAME, 64)                                                                                          \
    ATTENTION(T, A, NAME, 96)                                                                                          \
    ATTENTION(T, A, NAME, 128)

WIDTHS(float, Exact, f32)
WIDTHS(float, Tf32, tf32)
WIDTHS(bf16, Bf16, bf16)
