// Row operations of losses and prompt selection: one kernel each for forward and backward instead of dozens in a graph.
//
//   log_softmax   y = x - log Σ exp x               dx = dy - exp(y) Σ dy
//   l2_normalize  y = x / max(‖x‖, min_norm)        dx = (dy - y (y · dy)) / ‖x‖, or dy / min_norm if ‖x‖ <= min_norm
//
// Launch contract of every entry point: block (128), grid (ceil(rows / 4)), no shared memory. One warp per row, which
// is read from the cache in every pass. float32; outputs may be the inputs.

#include "device.cuh"

namespace {

constexpr int WARPS = 4;

/// Calls `f(i)` for each index `i` of this lane's share of a row.
template <class F> __device__ void each(unsigned width, F f) {
    for (unsigned i = threadIdx.x % 32; i < width; i += 32) f(i);
}

/// Returns, in every lane, the sum of `f(i)` over a row.
template <class F> __device__ float sum_of(unsigned width, F f) {
    float sum = 0.0f;
    each(width, [&](unsigned i) { sum += f(i); });
    return sum_over<32>(sum);
}

/// Calls `f` with the offset of this warp's row.
template <class F> __device__ void of_warp(unsigned rows, unsigned width, F f) {
    const size row = blockIdx.x * static_cast<size>(WARPS) + threadIdx.x / 32;
    if (row < rows) f(row * width);
}

} // namespace

#define ENTRY extern "C" __global__ void __launch_bounds__(32 * WARPS)

ENTRY log_softmax_forward_f32(const float* x, float* y, unsigned rows, unsigned width) {
    of_warp(rows, width, [&](size at) {
        float top = -INFINITY;
        each(width, [&](unsigned i) { top = fmaxf(top, x[at + i]); });
        top = max_over<32>(top);
        const float log_sum = logf(sum_of(width, [&](unsigned i) { return expf(x[at + i] - top); }));
        each(width, [&](unsigned i) { y[at + i] = x[at + i] - top - log_sum; });
    });
}

ENTRY log_softmax_backward_f32(const float* y, const float* dy, float* dx, unsigned rows, unsigned width) {
    of_warp(rows, width, [&](size at) {
        const float sum = sum_of(width, [&](unsigned i) { return dy[at + i]; });
        each(width, [&](unsigned i) { dx[at + i] = dy[at + i] - expf(y[at + i]) * sum; });
    });
}

ENTRY l2_normalize_forward_f32(const float* x, float* y, unsigned rows, unsigned width, float min_norm) {
    of_warp(rows, width, [&](size at) {
        const float norm = sqrtf(sum_of(width, [&](unsigned i) { return x[at + i] * x[at + i]; }));
        // A NaN norm stays NaN.
        const float divisor = norm < min_norm ? min_norm : norm;
        each(width, [&](unsigned i) { y[at + i] = x[at + i] / divisor; });
    });
}

ENTRY l2_normalize_backward_f32(const float* x, const float* dy, float* dx, unsigned rows, unsigned width,
                                float min_norm) {
    of_warp(rows, width, [&](size at) {
        const float norm = sqrtf(sum_of(width, [&](unsigned i) { return x[at + i] * x[at + i]; }));
        const bool is_short = norm <= min_norm;
        // Divide by the norm step by step: its powers may overflow float32.
        const float along =
            is_short ? 0.0f : sum_of(width, [&](unsigned i) { return x[at + i] / norm * dy[at + i]; });
        each(width, [&](unsigned i) {
            dx[at + i] = is_short ? dy[at + i] / min_norm : (dy[at + i] - x[at + i] / norm * along) / norm;
        });
    });
}
