// cuBLAS, cuBLASLt and cuRAND of the emulated GPU: the products that candle and this repository use, in double
// precision, from the column-major matrices that the libraries expect.

#include "../cuda_on_cpu.h"
#include "card.h"

namespace {

enum Status { success = 0, invalid_value = 7, not_supported = 15 };
enum Type { float32 = 0, float64 = 1, bfloat16 = 14 };
enum Compute { compute_float32 = 68, compute_float64 = 70, compute_tf32 = 77 };

/// Layout of `count` column-major matrices, `stride` elements apart, whose columns are `leading` elements apart.
struct Matrix {
    int type;
    uint64_t rows, columns;
    int64_t leading;
    int count = 1;
    int64_t stride = 0;

    /// Returns an element, rounded to TF32 if `tf32`.
    double at(const void* p, int64_t batch, int64_t row, int64_t column, bool tf32) const {
        const int64_t i = batch * stride + column * leading + row;
        switch (type) {
        case float32: {
            const float x = static_cast<const float*>(p)[i];
            return tf32 ? to_tf32(x) : x;
        }
        case float64: return static_cast<const double*>(p)[i];
        default: return __bfloat162float(static_cast<const __nv_bfloat16*>(p)[i]);
        }
    }

    void put(void* p, int64_t batch, int64_t row, int64_t column, double x) const {
        const int64_t i = batch * stride + column * leading + row;
        switch (type) {
        case float32: static_cast<float*>(p)[i] = static_cast<float>(x); break;
        case float64: static_cast<double*>(p)[i] = x; break;
        default: static_cast<__nv_bfloat16*>(p)[i] = __float2bfloat16_rn(static_cast<float>(x));
        }
    }

    /// Ends the program unless all elements lie within one allocation.
    void inside(const void* p, const char* what) const {
        const size_t size = type == bfloat16 ? 2 : type == float32 ? 4 : 8;
        const size_t numbers = (count - 1) * stride + (columns - 1) * leading + rows;
        card::inside(reinterpret_cast<uint64_t>(p), numbers * size, what);
    }

    bool valid() const {
        const bool numbers = type == float32 || type == float64 || type == bfloat16;
        return numbers && rows > 0 && columns > 0 && leading >= static_cast<int64_t>(rows) && count > 0 && stride >= 0;
    }
};

/// Product `c = alpha op(a) op(b) + beta add + bias`. `bias` has one element per row of `c`, `add` the layout of `c`.
struct Product {
    Matrix a, b, c;
    bool transpose_a, transpose_b;
    double alpha, beta;
    bool tf32;
    const void *a_at, *b_at, *add_at;
    void* c_at;
    const void* bias = nullptr;

    bool possible() const {
        const uint64_t m = transpose_a ? a.columns : a.rows, inner = transpose_a ? a.rows : a.columns;
        const uint64_t n = transpose_b ? b.rows : b.columns, also_inner = transpose_b ? b.columns : b.rows;
        return a.valid() && b.valid() && c.valid() && inner == also_inner && m == c.rows && n == c.columns &&
               a.count == c.count && b.count == c.count && a.type == b.type && a.type == c.type;
    }

    void operator()() const {
        a.inside(a_at, "the left factor of a product");
        b.inside(b_at, "the right factor of a product");
        c.inside(c_at, "a product");
        if (beta != 0.0) c.inside(add_at, "the matrix added to a product");
        if (bias) Matrix{c.type, c.rows, 1, static_cast<int64_t>(c.rows)}.inside(bias, "the bias of a product");
        const int64_t inner = transpose_a ? a.rows : a.columns;
        std::vector<double> left(c.rows * inner), right(inner * c.columns);
        for (int64_t batch = 0; batch < c.count; ++batch) {
            for (size_t row = 0; row < c.rows; ++row) {
                for (int64_t k = 0; k < inner; ++k) {
                    left[row * inner + k] = a.at(a_at, batch, transpose_a ? k : row, transpose_a ? row : k, tf32);
                }
            }
            for (size_t column = 0; column < c.columns; ++column) {
                for (int64_t k = 0; k < inner; ++k) {
                    right[column * inner + k] =
                        b.at(b_at, batch, transpose_b ? column : k, transpose_b ? k : column, tf32);
                }
            }
            for (size_t column = 0; column < c.columns; ++column) {
                for (size_t row = 0; row < c.rows; ++row) {
                    double sum = 0.0;
                    for (int64_t k = 0; k < inner; ++k) sum += left[row * inner + k] * right[column * inner + k];
                    sum *= alpha;
                    // With weight 0, the old value is not read: it may be NaN.
                    if (beta != 0.0) sum += beta * c.at(add_at, batch, row, column, false);
                    if (bias) sum += c.at(bias, 0, row, 0, false);
                    c.put(c_at, batch, row, column, sum);
                }
            }
        }
    }
};

double scalar(const void* p, bool wide) { return wide ? *static_cast<const double*>(p) : *static_cast<const float*>(p); }

struct Handle {
    void* stream = nullptr;
};

struct Description {
    int compute, scale;
    bool transpose_a = false, transpose_b = false;
    int epilogue = 1;
    const void* bias = nullptr;
};

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 256 == 0; }

} // namespace

#define API extern "C" __attribute__((visibility("default"))) int

API cublasCreate_v2(Handle** handle) {
    *handle = new Handle;
    return success;
}

API cublasDestroy_v2(Handle* handle) {
    delete handle;
    return success;
}

API cublasSetStream_v2(Handle* handle, void* stream) {
    handle->stream = stream;
    return success;
}

API cublasGemmStridedBatchedEx(Handle* handle, int transpose_a, int transpose_b, int m, int n, int k, const void* alpha,
                               const void* a, int a_type, int lda, long long stride_a, const void* b, int b_type, int ldb,
                               long long stride_b, const void* beta, void* c, int c_type, int ldc, long long stride_c,
                               int count, int compute, int) {
    if (compute != compute_float32 && compute != compute_tf32) return not_supported;
    const auto matrix = [count](int type, bool transposed, int rows, int columns, int leading, long long stride) {
        return Matrix{type, uint64_t(transposed ? columns : rows), uint64_t(transposed ? rows : columns), leading, count, stride};
    };
    const Product product{matrix(a_type, transpose_a, m, k, lda, stride_a),
                          matrix(b_type, transpose_b, k, n, ldb, stride_b),
                          matrix(c_type, false, m, n, ldc, stride_c),
                          transpose_a != 0,
                          transpose_b != 0,
                          scalar(alpha, false),
                          scalar(beta, false),
                          compute == compute_tf32,
                          a,
                          b,
                          c,
                          c};
    if (!product.possible()) return invalid_value;
    card::enqueue(handle->stream, "product", product);
    return success;
}

API cublasDgemmStridedBatched(Handle* handle, int transpose_a, int transpose_b, int m, int n, int k, const double* alpha,
                              const double* a, int lda, long long stride_a, const double* b, int ldb, long long stride_b,
                              const double* beta, double* c, int ldc, long long stride_c, int count) {
    const auto matrix = [count](bool transposed, int rows, int columns, int leading, long long stride) {
        return Matrix{float64, uint64_t(transposed ? columns : rows), uint64_t(transposed ? rows : columns), leading, count, stride};
    };
    const Product product{matrix(transpose_a, m, k, lda, stride_a),
                          matrix(transpose_b, k, n, ldb, stride_b),
                          matrix(false, m, n, ldc, stride_c),
                          transpose_a != 0,
                          transpose_b != 0,
                          *alpha,
                          *beta,
                          false,
                          a,
                          b,
                          c,
                          c};
    if (!product.possible()) return invalid_value;
    card::enqueue(handle->stream, "product", product);
    return success;
}

API cublasLtCreate(Handle** handle) { return cublasCreate_v2(handle); }

API cublasLtDestroy(Handle* handle) { return cublasDestroy_v2(handle); }

API cublasLtMatmulDescCreate(Description** description, int compute, int scale) {
    *description = new Description{compute, scale};
    return success;
}

API cublasLtMatmulDescDestroy(Description* description) {
    delete description;
    return success;
}

API cublasLtMatmulDescSetAttribute(Description* description, int attribute, const void* value, size_t bytes) {
    const size_t expected = attribute == 8 ? 8 : 4;
    if (bytes != expected) return invalid_value;
    int number = 0;
    if (expected == 4) memcpy(&number, value, sizeof number);
    switch (attribute) {
    case 3: description->transpose_a = number; return success;
    case 4: description->transpose_b = number; return success;
    case 5: return number == 0 ? success : invalid_value;
    case 7:
        description->epilogue = number;
        return number == 1 || number == 4 ? success : not_supported;
    case 8: memcpy(&description->bias, value, sizeof description->bias); return success;
    default: return not_supported;
    }
}

API cublasLtMatrixLayoutCreate(Matrix** layout, int type, uint64_t rows, uint64_t columns, int64_t leading) {
    *layout = new Matrix{type, rows, columns, leading};
    return success;
}

API cublasLtMatrixLayoutDestroy(Matrix* layout) {
    delete layout;
    return success;
}

API cublasLtMatmulPreferenceCreate(Handle** preference) { return cublasCreate_v2(preference); }

API cublasLtMatmulPreferenceDestroy(Handle* preference) { return cublasDestroy_v2(preference); }

API cublasLtMatmulPreferenceSetAttribute(Handle*, int, const void*, size_t) { return success; }

API cublasLtMatmulAlgoGetHeuristic(Handle*, Description*, Matrix*, Matrix*, Matrix*, Matrix*, Handle*, int wanted, void* found,
                                   int* count) {
    // cublasLtMatmulHeuristicResult_t: algorithm of eight words, workspace size, status, wave count, reserved.
    if (wanted < 1) return invalid_value;
    memset(found, 0, 8 * 8 + 8 + 4 + 4 + 4 * 4);
    *count = 1;
    return success;
}

API cublasLtMatmul(Handle*, Description* description, const void* alpha, const void* a, Matrix* a_layout, const void* b,
                   Matrix* b_layout, const void* beta, const void* c, Matrix* c_layout, void* d, Matrix* d_layout, const void*,
                   void* workspace, size_t workspace_bytes, void* stream) {
    const bool tf32 = description->compute == compute_tf32;
    if (!tf32 && description->compute != compute_float32) return not_supported;
    // The algorithm is chosen for operands with the alignment of allocations, which wide loads need.
    if (!aligned(a) || !aligned(b) || !aligned(c) || !aligned(d) || (description->bias && !aligned(description->bias))) {
        card::fail("cuBLASLt: an operand that is not aligned to 256 bytes");
    }
    if (c_layout != d_layout || (workspace_bytes > 0 && !workspace)) return invalid_value;
    const Product product{*a_layout,
                          *b_layout,
                          *d_layout,
                          description->transpose_a,
                          description->transpose_b,
                          scalar(alpha, false),
                          scalar(beta, false),
                          tf32,
                          a,
                          b,
                          c,
                          d,
                          description->epilogue == 4 ? description->bias : nullptr};
    if (!product.possible() || (description->epilogue == 4 && !description->bias)) return invalid_value;
    card::enqueue(stream, "product", product);
    return success;
}

// candle creates a generator for every device, but cdl draws all random numbers on the CPU.

API curandCreateGenerator(Handle** generator, int) { return cublasCreate_v2(generator); }

API curandDestroyGenerator(Handle* generator) { return cublasDestroy_v2(generator); }

API curandSetPseudoRandomGeneratorSeed(Handle*, unsigned long long) { return success; }

API curandSetGeneratorOffset(Handle*, unsigned long long) { return success; }

API curandSetStream(Handle* generator, void* stream) { return cublasSetStream_v2(generator, stream); }
