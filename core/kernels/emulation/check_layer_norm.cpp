// Checks layer_norm.cu: rows held in registers and rows that are read again, aligned or not, with mean 0 or 100.
//
// The result is rounded once: one u of its type. In float32, the difference x - mean has the rounding error of the
// mean, relative to the deviation.

#include "workbench.h"

using reference::Expected;
using reference::Values;

extern "C" {
#define DECLARE(T, NAME)                                                                                               \
    void layer_norm_forward_##NAME(const T*, const float*, const float*, T*, unsigned, unsigned, float);               \
    void layer_norm_backward_##NAME(const T*, const float*, const T*, const T*, T*, unsigned, unsigned, float);
DECLARE(float, f32)
DECLARE(bf16, bf16)
}

namespace {

template <class T> struct Kernels {
    std::string name;
    void (*forward)(const T*, const float*, const float*, T*, unsigned, unsigned, float);
    void (*backward)(const T*, const float*, const T*, const T*, T*, unsigned, unsigned, float);
};
const Kernels<float> F32 = {"f32", layer_norm_forward_f32, layer_norm_backward_f32};
const Kernels<bf16> BF16 = {"bf16", layer_norm_forward_bf16, layer_norm_backward_bf16};

/// `offset` has a bit for each tensor that is not aligned: 1 for x, 2 for gamma, 4 for beta and dy, 8 for the output, 16 for
/// `plus`.
template <class T>
void check(Bench& bench, const Kernels<T>& kernels, unsigned rows, unsigned width, double mean, size_t offset) {
    const float eps = 1e-6f;
    const std::string at = std::to_string(rows) + " x " + std::to_string(width) + " mean " +
                           std::to_string(static_cast<int>(mean)) + " offset " + std::to_string(offset);
    const size_t n = static_cast<size_t>(rows) * width;
    Buffer<T> x(normal(bench.random, n, 1.0, mean), offset & 1), dy(normal(bench.random, n), offset >> 2 & 1);
    Buffer<float> gamma(normal(bench.random, width, 0.3, 1.0), offset >> 1 & 1);
    Buffer<float> beta(normal(bench.random, width), offset >> 2 & 1);
    const double bound = (std::is_same_v<T, float> ? 0.0 : UNIT<T>) + UNIT<float> * (8.0 + 2.0 * fabs(mean));
    const Values g = gamma.values();

    const std::string forward = "layer_norm_forward_" + kernels.name;
    in_all_orders(bench.table, forward, at, [&](Order order) {
        Buffer<T> y(n, offset >> 3 & 1);
        emulation::launch({groups(rows, 4)}, {128}, 0, order, [&] {
            kernels.forward(x.data(), gamma.data(), beta.data(), y.data(), rows, width, eps);
        });
        if (!intact(x, gamma, beta, y)) bench.table.miss(forward, at + ": overwrote a guard or an input");
        if (order == Order::forward) {
            const Expected expected = reference::layer_norm(x.values(), g, beta.values(), eps);
            bench.table.compare(forward, at, y.values(), expected, width, false, bound);
        }
        return y.content();
    });

    const std::string backward = "layer_norm_backward_" + kernels.name;
    for (size_t plus_count : {size_t{0}, n}) {
        Buffer<T> plus(normal(bench.random, plus_count), offset >> 4 & 1);
        const std::string of = at + (plus_count ? " plus" : "");
        in_all_orders(bench.table, backward, of, [&](Order order) {
            Buffer<T> dx(n, offset >> 3 & 1);
            emulation::launch({groups(rows, 4)}, {128}, 0, order, [&] {
                kernels.backward(x.data(), gamma.data(), dy.data(), plus.pointer(), dx.data(), rows, width, eps);
            });
            if (!intact(x, gamma, dy, plus, dx)) bench.table.miss(backward, of + ": overwrote a guard or an input");
            if (order == Order::forward) {
                const Expected expected = reference::layer_norm_backward(x.values(), g, dy.values(), plus.values(), eps);
                bench.table.compare(backward, of, dx.values(), expected, width, false, bound);
            }
            return dx.content();
        });
    }
}

template <class T> void check_all(Bench& bench, const Kernels<T>& kernels) {
    for (unsigned width : {1u, 7u, 8u, 48u, 192u, 384u, 768u, 1024u, 1280u, 1288u, 1408u}) {
        for (unsigned rows : {1u, 5u}) check(bench, kernels, rows, width, 0.0, 0);
        for (size_t offset : {1, 2, 4, 8, 16}) check(bench, kernels, 2, width, 0.0, offset);
        check(bench, kernels, 3, width, 100.0, 0);
    }
}

} // namespace

void check_layer_norm(Bench& bench) {
    check_all(bench, F32);
    check_all(bench, BF16);
}
