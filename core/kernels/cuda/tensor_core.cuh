// Tensor core instructions of PTX (PTX ISA, "Matrix multiply-accumulate operation using mma instruction"). Lane
// l = 4 g + t of the warp contains:
//
//   16 x 8 result:         c[0], c[1] are (g, 2t), (g, 2t + 1); c[2], c[3] the same columns of row g + 8
//   bf16, 16 x 16 left:    a[0] is (g, 2t), (g, 2t + 1); a[1] the same of row g + 8; a[2], a[3] 8 columns later
//   bf16, 16 x 8 right:    b[0] is (2t, g), (2t + 1, g); b[1] the same 8 rows later
//   tf32, 16 x 8 left:     a[0] is (g, t); a[1] (g + 8, t); a[2] (g, t + 4); a[3] (g + 8, t + 4)
//   tf32, 8 x 8 right:     b[0] is (t, g); b[1] (t + 4, g)
#pragma once

#include "device.cuh"

#ifdef __CUDACC__

/// Computes `c += a b` of bfloat16 operands, with sums in float32.
__device__ __forceinline__ void mma_bf16(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Computes `c += a b` of tf32 operands, with sums in float32.
__device__ __forceinline__ void mma_tf32(float (&c)[4], const float (&a)[4], float b0, float b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
          "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}

/// Rounds to the nearest number with 10 bits after the point, ties away from zero.
__device__ __forceinline__ float to_tf32(float x) {
    unsigned rounded;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x));
    return __uint_as_float(rounded);
}

/// Loads four 8 x 8 matrices from shared memory. Lane l passes the address of row l % 8 of matrix l / 8, which is
/// aligned to 16 bytes, and receives (g, 2t), (g, 2t + 1) of each matrix.
__device__ __forceinline__ void load_matrices(unsigned (&m)[4], const bf16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
                 : "memory");
}

/// Loads four matrices like `load_matrices`, transposed: lane l receives (2t, g), (2t + 1, g) of each matrix.
__device__ __forceinline__ void load_transposed(unsigned (&m)[4], const bf16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
                 : "memory");
}

#endif

/// Packs two neighbouring elements into one register, the first in the low half.
__device__ __forceinline__ unsigned pack(float first, float second) {
    const bf16 pair[2] = {from_float<bf16>(first), from_float<bf16>(second)};
    unsigned packed;
    memcpy(&packed, pair, sizeof packed);
    return packed;
}
