// Gathering of injected keys and values, and the gradients of their sources.
//
//   own       (B, O, D)     float32: prompts that differ from image to image
//   shared    (S, D)        float32: prompts that all images share
//   places    (R, 2)        sources of the key and the value of an injected row: row p of `own` if p < O, else row
//                           p - O of `shared`; no row is used twice
//   rows      (B, R, 2D)    keys and values, concatenated
//
// Launch contract of every entry point: block (128), no shared memory, grid (2 R, B); a block computes one key or one
// value. B <= 65535. Outputs do not overlap other tensors. Fast if pointers are aligned to 16 bytes and widths are
// whole vectors; otherwise results are the same.

#include "device.cuh"

namespace {

/// Returns the offset in `rows` of the block's key or value of `image`.
__device__ inline size place_in_rows(size image, unsigned width) { return (image * gridDim.x + blockIdx.x) * width; }

template <int V, class T> __device__ void copy_row(const float* from, T* to, unsigned width) {
    for (unsigned column = threadIdx.x * V; column < width; column += blockDim.x * V) {
        float values[V];
        load(from + column, values);
        store(to + column, values);
    }
}

template <class T>
__device__ void gather(const float* own, const float* shared, const unsigned* places, T* rows, unsigned own_rows,
                       unsigned width) {
    constexpr int V = VECTOR<T>;
    const unsigned place = places[blockIdx.x];
    const size image = blockIdx.y;
    const float* from = place < own_rows ? own + (image * own_rows + place) * width
                                         : shared + static_cast<size>(place - own_rows) * width;
    T* to = rows + place_in_rows(image, width);
    if (width % V == 0 && aligned(own) && aligned(shared) && aligned(rows)) {
        copy_row<V>(from, to, width);
    } else {
        copy_row<1>(from, to, width);
    }
}

/// Writes the sum over `images` images from `image` on, in order.
template <int V, class T>
__device__ void sum_rows(const T* d_rows, size image, unsigned images, float* to, unsigned width) {
    for (unsigned column = threadIdx.x * V; column < width; column += blockDim.x * V) {
        float sum[V] = {};
#pragma unroll 4
        for (unsigned i = 0; i < images; ++i) {
            float values[V];
            load(d_rows + place_in_rows(image + i, width) + column, values);
#pragma unroll
            for (int e = 0; e < V; ++e) sum[e] += values[e];
        }
        store(to + column, sum);
    }
}

template <class T>
__device__ void scatter(const T* d_rows, const unsigned* places, float* d_own, float* d_shared, unsigned own_rows,
                        unsigned width) {
    constexpr int V = VECTOR<T>;
    const unsigned place = places[blockIdx.x];
    const size image = blockIdx.y;
    const bool is_own = place < own_rows;
    if (!is_own && image > 0) return;
    const unsigned images = is_own ? 1 : gridDim.y;
    float* to = is_own ? d_own + (image * own_rows + place) * width : d_shared + static_cast<size>(place - own_rows) * width;
    if (width % V == 0 && aligned(d_rows) && aligned(d_own) && aligned(d_shared)) {
        sum_rows<V>(d_rows, image, images, to, width);
    } else {
        sum_rows<1>(d_rows, image, images, to, width);
    }
}

} // namespace

#define ENTRY extern "C" __global__ void __launch_bounds__(128)

#define INJECTION(T, NAME)                                                                                             \
    /** Writes `rows`. `own` may be null if O = 0, `shared` if S = 0. */                                               \
    ENTRY gather_rows_##NAME(const float* own, const float* shared, const unsigned* places, T* rows,                   \
                             unsigned own_rows, unsigned width) {                                                      \
        gather<T>(own, shared, places, rows, own_rows, width);                                                         \
    }                                                                                                                  \
    /** Writes the rows of `d_own` and `d_shared` that `places` contains. */                                           \
    ENTRY scatter_rows_##NAME(const T* d_rows, const unsigned* places, float* d_own, float* d_shared,                  \
                              unsigned own_rows, unsigned width) {                                                     \
        scatter<T>(d_rows, places, d_own, d_shared, own_rows, width);                                                  \
    }

INJECTION(float, f32)
INJECTION(bf16, bf16)
