// Layer normalisation with frozen scale and shift: the output, and the gradient of the input.
//
// Launch contract of every entry point: block (128), grid (ceil(rows / 4)), no shared memory. One warp per row.
// Rows up to 1280 wide stay in registers if they are whole 16-byte vectors and all pointers are aligned to 16 bytes;
// other rows are read again in every pass, from the cache. Outputs may be the inputs.

#include "device.cuh"

namespace {

constexpr int WARPS = 4;
constexpr unsigned WIDEST_HELD = 1280;

/// One lane's share of a row: pieces of `V` neighbouring elements, `32 V` apart. `PIECES` pieces are kept in
/// registers; if `PIECES` is 0, each piece is read when it is used.
template <class T, int V, int PIECES> struct Row {
    const T* row;
    unsigned width;
    unsigned first = threadIdx.x % 32 * V;
    float held[PIECES > 0 ? PIECES : 1][V];

    __device__ Row(const T* row, unsigned width) : row(row), width(width) {
        each_piece([&](int p, unsigned column) {
            if constexpr (PIECES > 0) load(row + column, held[p]);
        });
    }

    /// Calls `f(piece, column)` for each piece.
    template <class F> __device__ void each_piece(F f) const {
        if constexpr (PIECES > 0) {
#pragma unroll
            for (int p = 0; p < PIECES; ++p) {
                const unsigned column = first + p * 32 * V;
                if (column < width) f(p, column);
            }
        } else {
            for (unsigned column = first; column < width; column += 32 * V) f(0, column);
        }
    }

    __device__ void get(int p, unsigned column, float (&values)[V]) const {
        if constexpr (PIECES > 0) {
#pragma unroll
            for (int e = 0; e < V; ++e) values[e] = held[p][e];
        } else {
            load(row + column, values);
        }
    }
};

struct Statistics {
    float mean, inverse_deviation;
};

/// Computes the statistics in two passes, because a variance from the difference of large sums would lose its digits.
template <class T, int V, int PIECES> __device__ Statistics statistics(const Row<T, V, PIECES>& x, float eps) {
    float values[V], sum = 0.0f, squares = 0.0f;
    x.each_piece([&](int p, unsigned column) {
        x.get(p, column, values);
#pragma unroll
        for (int e = 0; e < V; ++e) sum += values[e];
    });
    const float mean = sum_over<32>(sum) / x.width;
    x.each_piece([&](int p, unsigned column) {
        x.get(p, column, values);
#pragma unroll
        for (int e = 0; e < V; ++e) squares += (values[e] - mean) * (values[e] - mean);
    });
    return {mean, 1.0f / sqrtf(sum_over<32>(squares) / x.width + eps)};
}

template <class T, int V, int PIECES>
__device__ void forward_row(const T* x_row, const float* gamma, const float* beta, T* y, unsigned width, float eps) {
    const Row<T, V, PIECES> x(x_row, width);
    const Statistics s = statistics(x, eps);
    x.each_piece([&](int p, unsigned column) {
        float values[V], scale[V], shift[V];
        x.get(p, column, values);
        load(gamma + column, scale);
        load(beta + column, shift);
#pragma unroll
        for (int e = 0; e < V; ++e) {
            values[e] = (values[e] - s.mean) * s.inverse_deviation * scale[e] + shift[e];
        }
        store(y + column, values);
    });
}

/// Computes `dx = (g - mean(g) - x̂ mean(g x̂)) / deviation + plus` with x̂ the normalised row and g = γ dy.
template <class T, int V, int PIECES>
__device__ void backward_row(const T* x_row, const float* gamma, const T* dy_row, const T* plus, T* dx, unsigned width,
                             float eps) {
    const Row<T, V, PIECES> x(x_row, width), dy(dy_row, width);
    const Statistics s = statistics(x, eps);
    float values[V], gradient[V], scale[V];
    /// Leaves x̂ in `values` and g in `gradient`.
    const auto piece = [&](int p, unsigned column) {
        x.get(p, column, values);
        dy.get(p, column, gradient);
        load(gamma + column, scale);
#pragma unroll
        for (int e = 0; e < V; ++e) {
            values[e] = (values[e] - s.mean) * s.inverse_deviation;
            gradient[e] *= scale[e];
        }
    };
    float sum = 0.0f, product = 0.0f;
    x.each_piece([&](int p, unsigned column) {
        piece(p, column);
#pragma unroll
        for (int e = 0; e < V; ++e) {
            sum += gradient[e];
            product += gradient[e] * values[e];
        }
    });
    const float mean = sum_over<32>(sum) / width, projection = sum_over<32>(product) / width;
    x.each_piece([&](int p, unsigned column) {
        float residual[V] = {};
        if (plus) load(plus + column, residual);
        piece(p, column);
#pragma unroll
        for (int e = 0; e < V; ++e) {
            gradient[e] = (gradient[e] - mean - values[e] * projection) * s.inverse_deviation + residual[e];
        }
        store(dx + column, gradient);
    });
}

/// Number of pieces that hold a row of `WIDEST_HELD` elements.
template <class T> constexpr int PIECES = (WIDEST_HELD + 32 * VECTOR<T> - 1) / (32 * VECTOR<T>);

__device__ inline size row_of_warp() { return blockIdx.x * static_cast<size>(WARPS) + threadIdx.x / 32; }

template <class T>
__device__ void forward(const T* x, const float* gamma, const float* beta, T* y, unsigned rows, unsigned width,
                        float eps) {
    const size row = row_of_warp();
    if (row >= rows) return;
    const bool held = width <= WIDEST_HELD && width % VECTOR<T> == 0 && aligned(x) && aligned(gamma) &&
                      aligned(beta) && aligned(y);
    if (held) {
        forward_row<T, VECTOR<T>, PIECES<T>>(x + row * width, gamma, beta, y + row * width, width, eps);
    } else {
        forward_row<T, 1, 0>(x + row * width, gamma, beta, y + row * width, width, eps);
    }
}

template <class T>
__device__ void backward(const T* x, const float* gamma, const T* dy, const T* plus, T* dx, unsigned rows,
                         unsigned width, float eps) {
    const size row = row_of_warp();
    if (row >= rows) return;
    const bool held = width <= WIDEST_HELD && width % VECTOR<T> == 0 && aligned(x) && aligned(gamma) &&
                      aligned(dy) && aligned(plus) && aligned(dx);
    const size first = row * width;
    const T* own_plus = plus ? plus + first : nullptr;
    if (held) {
        backward_row<T, VECTOR<T>, PIECES<T>>(x + first, gamma, dy + first, own_plus, dx + first, width, eps);
    } else {
        backward_row<T, 1, 0>(x + first, gamma, dy + first, own_plus, dx + first, width, eps);
    }
}

} // namespace

#define ENTRY extern "C" __global__ void __launch_bounds__(32 * WARPS)

#define LAYER_NORM(T, NAME)                                                                                            \
    /** `y = (x - mean) / sqrt(variance + eps) * gamma + beta` for each of `rows` rows of `width`. */                  \
    ENTRY layer_norm_forward_##NAME(const T* x, const float* gamma, const float* beta, T* y, unsigned rows,            \
                                    unsigned width, float eps) {                                                       \
        forward<T>(x, gamma, beta, y, rows, width, eps);                                                               \
    }                                                                                                                  \
    /** Writes the gradient of `x`, plus `plus` unless it is null. Computes the statistics of `x` again. */            \
    ENTRY layer_norm_backward_##NAME(const T* x, const float* gamma, const T* dy, const T* plus, T* dx, unsigned rows, \
                                     unsigned width, float eps) {                                                      \
        backward<T>(x, gamma, dy, plus, dx, rows, width, eps);                                                         \
    }

LAYER_NORM(float, f32)
LAYER_NORM(bf16, bf16)
