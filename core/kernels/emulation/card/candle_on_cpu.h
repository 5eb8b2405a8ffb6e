// Replaces CUDA's headers so that a plain C++ compiler builds candle's kernels for float32, float64, bf16 and integers.
// bf16 is computed in float32. Other small types are only declared: computing with them ends the program.
#pragma once

#include <assert.h>

#include <cmath>
#include <limits>

#define __nv_bfloat16 __nv_bfloat16_bits
#include "../cuda_on_cpu.h"
#undef __nv_bfloat16

#define __CUDA_ARCH__ 800
#define __CUDACC_VER_MAJOR__ 13
#define __CUDACC_VER_MINOR__ 0
#define __host__
#define __shared__ static
#define __restrict__

struct float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }

/// bf16 number that is converted to float32 for every computation.
struct __nv_bfloat16 : __nv_bfloat16_bits {
    __nv_bfloat16() = default;
    __nv_bfloat16(__nv_bfloat16_bits x) : __nv_bfloat16_bits(x) {}
    template <class N, class = std::enable_if_t<std::is_arithmetic_v<N>>>
    __nv_bfloat16(N x) : __nv_bfloat16_bits(__float2bfloat16_rn(static_cast<float>(x))) {}
    operator float() const { return __bfloat162float(__nv_bfloat16_bits(*this)); }
    __nv_bfloat16& operator+=(float x) { return *this = __nv_bfloat16(float(*this) + x); }
    __nv_bfloat16& operator*=(float x) { return *this = __nv_bfloat16(float(*this) * x); }
};
inline __nv_bfloat16 __float2bfloat16(float x) { return x; }

struct __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
inline __nv_bfloat162 __hadd2(__nv_bfloat162 a, __nv_bfloat162 b) { return {float(a.x) + float(b.x), float(a.y) + float(b.y)}; }
inline __nv_bfloat162 __hmul2(__nv_bfloat162 a, __nv_bfloat162 b) { return {float(a.x) * float(b.x), float(a.y) * float(b.y)}; }

/// Type that candle's kernels name but never compute with.
template <int bytes> struct Unused {
    unsigned char __x[bytes];
    Unused() = default;
    template <class N, class = std::enable_if_t<std::is_arithmetic_v<N>>> Unused(N) { unused(); }
    operator float() const { return unused(); }
    Unused& operator+=(float) { return unused(), *this; }
    Unused& operator*=(float) { return unused(), *this; }
    [[noreturn]] static float unused() { emulation::fail("a type that is not emulated", emulation::Place::current()); }
};
using __half = Unused<2>;
using __nv_fp8_e4m3 = Unused<1>;
enum { __NV_E4M3 };
template <class T> float __nv_cvt_fp8_to_halfraw(T, int) { return __half::unused(); }
inline float __half2float(float x) { return x; }
inline float __half2float(__half x) { return x; }
inline __half __float2half(float x) { return x; }
inline unsigned short __half_as_ushort(__half) { return __half::unused(); }
inline __half __ushort_as_half(unsigned short) { return __half::unused(); }

// Functions of bf16. Those of half end the program, because its conversion to float32 does.
#define OF_SMALL(name, result)                                                                                         \
    inline __nv_bfloat16 name(__nv_bfloat16 a) {                                                                       \
        const float x = a;                                                                                             \
        return result;                                                                                                 \
    }                                                                                                                  \
    inline __half name(__half a) {                                                                                     \
        const float x = a;                                                                                             \
        return result;                                                                                                 \
    }
OF_SMALL(hsqrt, sqrtf(x))
OF_SMALL(hcos, cosf(x))
OF_SMALL(hsin, sinf(x))
OF_SMALL(hlog, logf(x))
OF_SMALL(hexp, expf(x))
OF_SMALL(__habs, fabsf(x))
inline bool __hisnan(__nv_bfloat16 x) { return std::isnan(float(x)); }
inline bool __hisnan(__half x) { return std::isnan(float(x)); }
inline float nan_or_max(float a, float b) { return std::isnan(a) ? a : std::isnan(b) ? b : fmaxf(a, b); }
inline float nan_or_min(float a, float b) { return std::isnan(a) ? a : std::isnan(b) ? b : fminf(a, b); }
inline __nv_bfloat16 __hmax_nan(__nv_bfloat16 a, __nv_bfloat16 b) { return nan_or_max(a, b); }
inline __nv_bfloat16 __hmin_nan(__nv_bfloat16 a, __nv_bfloat16 b) { return nan_or_min(a, b); }
inline __half __hmax_nan(__half a, __half b) { return nan_or_max(a, b); }
inline __half __hmin_nan(__half a, __half b) { return nan_or_min(a, b); }

using std::isnan;
using std::signbit;
template <class A, class B> auto min(A a, B b) { return a < b ? a : b; }
template <class A, class B> auto max(A a, B b) { return a < b ? b : a; }
inline float normcdff(float x) { return 0.5f * erfcf(-x * 0.70710678f); }
inline double normcdf(double x) { return 0.5 * erfc(-x * 0.70710678118654752); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }

template <class To, class From> To same_bits(From x) {
    To to;
    static_assert(sizeof to == sizeof x);
    memcpy(&to, &x, sizeof to);
    return to;
}
inline int __float_as_int(float x) { return same_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return same_bits<unsigned>(x); }
inline float __int_as_float(int x) { return same_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return same_bits<float>(x); }
inline long long __double_as_longlong(double x) { return same_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return same_bits<double>(x); }

// Only one thread runs at a time, so atomic operations are plain ones.
template <class T> T change(T* at, T to) {
    const T before = *at;
    *at = to;
    return before;
}
template <class T, class X> T atomicAdd(T* at, X x) { return change(at, T(*at + T(x))); }
template <class T, class X> T atomicMax(T* at, X x) { return change(at, *at < T(x) ? T(x) : *at); }
template <class T, class X> T atomicMin(T* at, X x) { return change(at, T(x) < *at ? T(x) : *at); }
template <class T, class E, class X> T atomicCAS(T* at, E expected, X x) { return change(at, *at == T(expected) ? T(x) : *at); }

namespace cuda::std {
using ::std::numeric_limits;
}
