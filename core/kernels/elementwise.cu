// GELU and bias, element by element. All are bound by memory: 16 bytes a load where the pointers allow.
//
// Launch contract of every entry point here: any grid and block of one dimension, no shared memory. Blocks of 256 and
// enough of them to give a thread one to four vectors (16 bytes) are quick. Outputs may be the inputs. Pointers that
// are not aligned to 16 bytes, and widths that are not whole vectors, only cost time.

#include "device.cuh"

namespace {

/// `y = f(a, b, bias)` over `n` elements; `b` and `bias`, one value for each of `width` columns, may be null.
template <class T, class F>
__device__ void map(const T* a, const T* b, const T* bias, T* y, size n, unsigned width, F f) {
    constexpr int V = VECTOR<T>;
    const size thread = blockIdx.x * static_cast<size>(blockDim.x) + threadIdx.x;
    const size threads = gridDim.x * static_cast<size>(blockDim.x);
    const bool vectors = aligned(a) && aligned(b) && aligned(bias) && aligned(y) && (!bias || width % V == 0);
    const size whole = vectors ? n / V : 0;

    // The column is carried along: a 64-bit remainder for each vector would cost more than the vector.
    const unsigned columns = vectors && bias ? width / V : 1;
    const unsigned step = threads % columns;
    unsigned column = thread % columns;
    for (size i = thread; i < whole; i += threads) {
        float left[V], right[V] = {}, add[V] = {}, result[V];
        load(a + i * V, left);
        if (b) load(b + i * V, right);
        if (bias) load(bias + column * V, add);
#pragma unroll
        for (int e = 0; e < V; ++e) result[e] = f(left[e], right[e], add[e]);
        store(y + i * V, result);
        column += step;
        if (column >= columns) column -= columns;
    }
    for (size i = whole * V + thread; i < n; i += threads) {
        const float right = b ? to_float(b[i]) : 0.0f, add = bias ? to_float(bias[i % width]) : 0.0f;
        y[i] = from_float<T>(f(to_float(a[i]), right, add));
    }
}

/// Φ, the distribution function of the standard normal.
__device__ inline float cdf(float x) { return 0.5f * (1.0f + erff(x * 0.70710678118654752f)); }

__device__ inline float gelu(float x) { return x * cdf(x); }

/// d/dx x Φ(x) = Φ(x) + x φ(x).
__device__ inline float gelu_slope(float x) { return cdf(x) + x * 0.39894228040143268f * expf(-0.5f * x * x); }

} // namespace

#define ENTRY extern "C" __global__ void

#define ELEMENTWISE(T, NAME)                                                                                           \
    /** `y = x Φ(x)`. */                                                                                               \
    ENTRY gelu_forward_##NAME(const T* x, T* y, size n) {                                                              \
        map<T>(x, nullptr, nullptr, y, n, 1, [](float x, float, float) { return gelu(x); });                           \
    }                                                                                                                  \
    /** `dx = dy (Φ(x) + x φ(x))`. */                                                                                  \
    ENTRY gelu_backward_##NAME(const T* x, const T* dy, T* dx, size n) {                                               \
        map<T>(x, dy, nullptr, dx, n, 1, [](float x, float dy, float) { return dy * gelu_slope(x); });                 \
    }                                                                                                                  \
    /** `y += bias` on each of `rows` rows of `width`. */                                                              \
    ENTRY add_bias_##NAME(T* y, const T* bias, size rows, unsigned width) {                                            \
        map<T>(y, nullptr, bias, y, rows * width, width, [](float y, float, float bias) { return y + bias; });         \
    }

ELEMENTWISE(float, f32)
ELEMENTWISE(bf16, bf16)
