// Checks elementwise.cu: lengths around a vector and a grid, each pointer aligned or not.
//
// Each result is rounded once to its type: one u. Errors of GELU are relative to |x|, those of its gradient to |dy|;
// float32 arithmetic adds a few roundings.

#include "workbench.h"

using reference::Expected;
using reference::Values;
using size = unsigned long long;

extern "C" {
#define DECLARE(T, NAME)                                                                                               \
    void gelu_forward_##NAME(const T*, T*, size);                                                                      \
    void gelu_backward_##NAME(const T*, const T*, T*, size);
DECLARE(float, f32)
DECLARE(bf16, bf16)
}

namespace {

template <class T> struct Kernels {
    std::string name;
    void (*gelu)(const T*, T*, size);
    void (*gelu_backward)(const T*, const T*, T*, size);
};
#define KERNELS(NAME) {#NAME, gelu_forward_##NAME, gelu_backward_##NAME}
const Kernels<float> F32 = KERNELS(f32);
const Kernels<bf16> BF16 = KERNELS(bf16);

/// Draws inputs near 0, and adds some for which Φ and its derivative are 0 or 1.
Values inputs(std::mt19937& random, size_t count) {
    Values x = normal(random, count, 2.0);
    const double special[] = {0.0, -0.0, 1e-30, 6.0, -6.0, 13.5, -13.5, 1e4, -1e4};
    for (size_t i = 0; i < count && i < std::size(special); ++i) x[count - 1 - i] = special[i];
    return x;
}

/// `offset` has a bit for each tensor that is not aligned: 1 for x, 2 for the other input, 4 for the output.
template <class T> struct Checks {
    Bench& bench;
    const Kernels<T>& kernels;
    const double bound = UNIT<T> + 4.0 * UNIT<float>;

    /// Compares the output of a kernel with `expected`. `run(out, order)` launches the kernel and returns whether
    /// guards and inputs are intact.
    template <class F>
    void check(const std::string& entry, const std::string& at, const Expected& expected, size_t offset, double bound,
               F run) {
        const std::string what = entry + "_" + kernels.name;
        in_all_orders(bench.table, what, at, [&](Order order) {
            Buffer<T> out(expected.count(), offset >> 2 & 1);
            if (!run(out, order)) bench.table.miss(what, at + ": overwrote a guard or an input");
            if (order == Order::forward) bench.table.compare(what, at, out.values(), expected, 1, false, bound);
            return out.content();
        });
    }

    void gelu(size_t n, size_t offset, unsigned blocks) {
        const std::string at = "n " + std::to_string(n) + " offset " + std::to_string(offset);
        Buffer<T> x(inputs(bench.random, n), offset & 1), dy(normal(bench.random, n), offset >> 1 & 1);
        check("gelu_forward", at, reference::gelu(x.values()), offset, bound, [&](Buffer<T>& y, Order order) {
            emulation::launch({blocks}, {256}, 0, order, [&] { kernels.gelu(x.data(), y.data(), n); });
            return intact(x, y);
        });
        const Expected gradient = reference::gelu_backward(x.values(), dy.values());
        check("gelu_backward", at, gradient, offset, bound, [&](Buffer<T>& dx, Order order) {
            const auto kernel = [&] { kernels.gelu_backward(x.data(), dy.data(), dx.data(), n); };
            emulation::launch({blocks}, {256}, 0, order, kernel);
            return intact(x, dy, dx);
        });
    }

    void all() {
        for (size_t n : {1, 3, 4, 7, 8, 9, 255, 256, 2048, 2051, 9000}) {
            for (size_t offset : {0, 1, 2, 4}) gelu(n, offset, 1);
            gelu(n, 0, 3);
        }
    }
};

} // namespace

void check_elementwise(Bench& bench) {
    Checks<float>{bench, F32}.all();
    Checks<bf16>{bench, BF16}.all();
}
