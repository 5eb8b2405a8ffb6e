// Shared code of all kernels: conversions of both element types, 16-byte loads and stores, sums over a warp.
#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>

/// Returns the dynamic shared memory of the block.
__device__ __forceinline__ unsigned char* dynamic_shared() {
    extern __shared__ uint4 bytes[];
    return reinterpret_cast<unsigned char*>(bytes);
}
#else
#include "../emulation/cuda_on_cpu.h"
#endif

using bf16 = __nv_bfloat16;
using size = unsigned long long;

constexpr unsigned WHOLE_WARP = 0xffffffffu;

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bf16 x) { return __bfloat162float(x); }

template <class T> __device__ T from_float(float x);
template <> __device__ inline float from_float<float>(float x) { return x; }
template <> __device__ inline bf16 from_float<bf16>(float x) { return __float2bfloat16_rn(x); }

/// Number of elements in a 16-byte load.
template <class T> constexpr int VECTOR = 16 / sizeof(T);

/// Returns whether 16-byte loads may start at this address. True for null, which is never read.
__device__ inline bool aligned(const void* p) { return (reinterpret_cast<size_t>(p) & 15) == 0; }

/// Loads `N` elements from `p`: one element if `N` is 1, else 16 bytes at a time, for which `p` must be aligned.
template <int N, class T> __device__ inline void load(const T* p, float (&values)[N]) {
    if constexpr (N == 1) {
        values[0] = to_float(*p);
    } else {
        static_assert(N % VECTOR<T> == 0);
#pragma unroll
        for (int v = 0; v < N; v += VECTOR<T>) {
            const uint4 raw = *reinterpret_cast<const uint4*>(p + v);
            T elements[VECTOR<T>];
            memcpy(elements, &raw, sizeof raw);
#pragma unroll
            for (int e = 0; e < VECTOR<T>; ++e) values[v + e] = to_float(elements[e]);
        }
    }
}

/// Stores `N` elements to `p`: one element if `N` is 1, else 16 bytes at a time, for which `p` must be aligned.
template <int N, class T> __device__ inline void store(T* p, const float (&values)[N]) {
    if constexpr (N == 1) {
        *p = from_float<T>(values[0]);
    } else {
        static_assert(N % VECTOR<T> == 0);
#pragma unroll
        for (int v = 0; v < N; v += VECTOR<T>) {
            T elements[VECTOR<T>];
#pragma unroll
            for (int e = 0; e < VECTOR<T>; ++e) elements[e] = from_float<T>(values[v + e]);
            uint4 raw;
            memcpy(&raw, elements, sizeof raw);
            *reinterpret_cast<uint4*>(p + v) = raw;
        }
    }
}

/// Returns, in every lane, the sum over its group of `LANES` neighbouring lanes.
template <int LANES> __device__ inline float sum_over(float x) {
#pragma unroll
    for (int apart = LANES / 2; apart > 0; apart /= 2) x += __shfl_xor_sync(WHOLE_WARP, x, apart);
    return x;
}

/// Returns, in every lane, the maximum over its group of `LANES` neighbouring lanes.
template <int LANES> __device__ inline float max_over(float x) {
#pragma unroll
    for (int apart = LANES / 2; apart > 0; apart /= 2) x = fmaxf(x, __shfl_xor_sync(WHOLE_WARP, x, apart));
    return x;
}
