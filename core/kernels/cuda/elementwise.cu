// GELU, element by element. The kernels are memory-bound: they load 16 bytes at once if the alignment allows.
//
// Launch contract of every entry point: any one-dimensional grid and block, no shared memory. Fast with blocks of 256
// threads and one to four vectors (16 bytes) per thread. Outputs may be the inputs. Pointers that are not aligned to 16
// bytes, and sizes that are not whole vectors, only cost time.

#include "device.cuh"

namespace {

/// Computes `y = f(a, b)` for `n` elements. `b` may be null.
template <class T, class F> __device__ void map(const T* a, const T* b, T* y, size n, F f) {
    constexpr int V = VECTOR<T>;
    const size thread = blockIdx.x * static_cast<size>(blockDim.x) + threadIdx.x;
    const size threads = gridDim.x * static_cast<size>(blockDim.x);
    const size whole = aligned(a) && aligned(b) && aligned(y) ? n / V : 0;
    for (size i = thread; i < whole; i += threads) {
        float left[V], right[V] = {}, result[V];
        load(a + i * V, left);
        if (b) load(b + i * V, right);
#pragma unroll
        for (int e = 0; e < V; ++e) result[e] = f(left[e], right[e]);
        store(y + i * V, result);
    }
    for (size i = whole * V + thread; i < n; i += threads) {
        y[i] = from_float<T>(f(to_float(a[i]), b ? to_float(b[i]) : 0.0f));
    }
}

/// Returns Φ(x), the distribution function of the standard normal distribution.
__device__ inline float cdf(float x) { return 0.5f * (1.0f + erff(x * 0.70710678118654752f)); }

__device__ inline float gelu(float x) { return x * cdf(x); }

/// Returns the derivative of x Φ(x), Φ(x) + x φ(x).
__device__ inline float gelu_slope(float x) { return cdf(x) + x * 0.39894228040143268f * expf(-0.5f * x * x); }

} // namespace

#define ENTRY extern "C" __global__ void

#define ELEMENTWISE(T, NAME)                                                                                           \
    /** `y = x Φ(x)`. */                                                                                               \
    ENTRY gelu_forward_##NAME(const T* x, T* y, size n) {                                                              \
        map<T>(x, nullptr, y, n, [](float x, float) { return gelu(x); });                                              \
    }                                                                                                                  \
    /** `dx = dy (Φ(x) + x φ(x))`. */                                                                                  \
    ENTRY gelu_backward_##NAME(const T* x, const T* dy, T* dx, size n) {                                               \
        map<T>(x, dy, dx, n, [](float x, float dy) { return dy * gelu_slope(x); });                                    \
    }

ELEMENTWISE(float, f32)
ELEMENTWISE(bf16, bf16)
