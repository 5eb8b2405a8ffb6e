// Embedding before the first block: images to patches, and patches with the prefix to tokens.
//
//   pixels    (B, C, S, S)      float32
//   patches   (B, G G, C p p)   patches of p by p pixels, G = S / p along a side, one patch per row; a row contains
//                               the channels in order, each pixel row by pixel row
//   embedded  (B, G G, D)       patches after their linear layer
//   tokens    (B, R + G G, D)   the prefix (CLS and registers, R tokens), then embedded patches plus positions
//
// Launch contract of every entry point: block (128), no shared memory; a block computes one row of an image, grid
// (rows of an image, B). B <= 65535. Outputs do not overlap other tensors. Fast if pointers are aligned to 16 bytes and
// widths and sides are whole vectors; otherwise results are the same.

#include "device.cuh"

namespace {

/// Writes one patch, `V` neighbouring pixels of a row at a time.
template <int V, class T>
__device__ void patchify_row(const float* corner, const float* mean, const float* scale, T* y, unsigned channels,
                             unsigned side, unsigned patch) {
    const unsigned area = patch * patch;
    for (unsigned column = threadIdx.x * V; column < channels * area; column += blockDim.x * V) {
        const unsigned channel = column / area, within = column % area;
        float values[V];
        load(corner + (channel * side + within / patch) * side + within % patch, values);
        if (mean) {
#pragma unroll
            for (int e = 0; e < V; ++e) values[e] = (values[e] - mean[channel]) * scale[channel];
        }
        store(y + column, values);
    }
}

template <class T>
__device__ void patchify(const float* pixels, const float* mean, const float* scale, T* y, unsigned channels,
                         unsigned side, unsigned patch) {
    constexpr int V = VECTOR<T>;
    const unsigned grid = side / patch, row = blockIdx.x / grid, column = blockIdx.x % grid;
    const float* corner = pixels + blockIdx.y * static_cast<size>(channels) * side * side + row * patch * side + column * patch;
    T* own = y + (blockIdx.y * static_cast<size>(gridDim.x) + blockIdx.x) * channels * patch * patch;
    if (patch % V == 0 && side % VECTOR<float> == 0 && aligned(pixels) && aligned(y)) {
        patchify_row<V>(corner, mean, scale, own, channels, side, patch);
    } else {
        patchify_row<1>(corner, mean, scale, own, channels, side, patch);
    }
}

template <int V, class T> __device__ void sum_row(const T* a, const T* b, T* y, unsigned width) {
    for (unsigned column = threadIdx.x * V; column < width; column += blockDim.x * V) {
        float left[V], right[V] = {};
        load(a + column, left);
        if (b) load(b + column, right);
#pragma unroll
        for (int e = 0; e < V; ++e) left[e] += right[e];
        store(y + column, left);
    }
}

template <class T>
__device__ void assemble_tokens(const T* embedded, const T* prefix, const T* positions, T* tokens, unsigned prefix_rows,
                             unsigned width) {
    constexpr int V = VECTOR<T>;
    const unsigned row = blockIdx.x;
    const bool patch = row >= prefix_rows;
    const size place = blockIdx.y * static_cast<size>(gridDim.x - prefix_rows) + row - prefix_rows;
    const T* from = patch ? embedded + place * width : prefix + static_cast<size>(row) * width;
    const T* position = patch ? positions + static_cast<size>(row - prefix_rows) * width : nullptr;
    T* own = tokens + (blockIdx.y * static_cast<size>(gridDim.x) + row) * width;
    if (width % V == 0 && aligned(embedded) && aligned(prefix) && aligned(positions) && aligned(tokens)) {
        sum_row<V>(from, position, own, width);
    } else {
        sum_row<1>(from, position, own, width);
    }
}

} // namespace

#define ENTRY extern "C" __global__ void __launch_bounds__(128)

#define EMBEDDING(T, NAME)                                                                                             \
    /** Writes `patches` of `(pixels - mean) * scale` per channel, or of `pixels` if `mean` and `scale` are null. */   \
    ENTRY patchify_##NAME(const float* pixels, const float* mean, const float* scale, T* y, unsigned channels,      \
                             unsigned side, unsigned patch) {                                                          \
        patchify<T>(pixels, mean, scale, y, channels, side, patch);                                                    \
    }                                                                                                                  \
    /** Writes `tokens`. */                                                                                            \
    ENTRY assemble_tokens_##NAME(const T* embedded, const T* prefix, const T* positions, T* tokens, unsigned prefix_rows, \
                              unsigned width) {                                                                        \
        assemble_tokens<T>(embedded, prefix, positions, tokens, prefix_rows, width);                                      \
    }

EMBEDDING(float, f32)
EMBEDDING(bf16, bf16)
