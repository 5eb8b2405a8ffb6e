// Checks rows.cu: short and long rows, scores in the hundreds, rows that are zero or shorter than the least length.
//
// All is float32: sums of n terms with an error of some n^1/2 u, functions with a few u.

#include "workbench.h"

using reference::Expected;
using reference::Values;

extern "C" {
void log_softmax_forward_f32(const float*, float*, unsigned, unsigned);
void log_softmax_backward_f32(const float*, const float*, float*, unsigned, unsigned);
void l2_normalize_forward_f32(const float*, float*, unsigned, unsigned, float);
void l2_normalize_backward_f32(const float*, const float*, float*, unsigned, unsigned, float);
}

namespace {

constexpr float LEAST = 1e-12f;

/// `run(out)` launches a kernel that writes `out` and returns whether everything else is unchanged.
template <class F>
void check(Bench& bench, const std::string& what, const std::string& at, const Expected& expected, double bound, F run) {
    in_all_orders(bench.table, what, at, [&](Order order) {
        Buffer<float> out(expected.count());
        if (!run(out, order)) bench.table.miss(what, at + ": wrote where it must not");
        if (order == Order::forward) bench.table.compare(what, at, out.values(), expected, 1, false, bound);
        return out.content();
    });
}

void check_size(Bench& bench, unsigned rows, unsigned width, double deviation) {
    const std::string at =
        std::to_string(rows) + " x " + std::to_string(width) + " deviation " + std::to_string(deviation);
    const size_t n = size_t{rows} * width;
    const double bound = UNIT<float> * (6.0 + sqrt(width));
    Buffer<float> x(normal(bench.random, n, deviation)), dy(normal(bench.random, n));
    const auto launch = [&](Order order, auto kernel) { emulation::launch({groups(rows, 4)}, {128}, 0, order, kernel); };

    const Expected logs = reference::log_softmax(x.values(), width);
    check(bench, "log_softmax_forward", at, logs, bound, [&](Buffer<float>& y, Order order) {
        launch(order, [&] { log_softmax_forward_f32(x.data(), y.data(), rows, width); });
        return intact(x, y);
    });
    Buffer<float> y(logs.value);
    const Expected d_logs = reference::log_softmax_backward(y.values(), dy.values(), width);
    check(bench, "log_softmax_backward", at, d_logs, bound, [&](Buffer<float>& dx, Order order) {
        launch(order, [&] { log_softmax_backward_f32(y.data(), dy.data(), dx.data(), rows, width); });
        return intact(y, dy, dx);
    });

    Values of_rows = x.values();
    // The last row is zero, the one before shorter than the least length.
    for (unsigned i = 0; i < width; ++i) {
        of_rows[n - width + i] = 0.0;
        if (rows > 1) of_rows[n - 2 * width + i] *= 1e-16;
    }
    Buffer<float> long_and_short(of_rows);
    const Expected units = reference::l2_normalize(long_and_short.values(), width, LEAST);
    check(bench, "l2_normalize_forward", at, units, bound, [&](Buffer<float>& out, Order order) {
        launch(order, [&] { l2_normalize_forward_f32(long_and_short.data(), out.data(), rows, width, LEAST); });
        return intact(long_and_short, out);
    });
    const Expected d_units = reference::l2_normalize_backward(long_and_short.values(), dy.values(), width, LEAST);
    check(bench, "l2_normalize_backward", at, d_units, 2.0 * bound, [&](Buffer<float>& dx, Order order) {
        launch(order, [&] { l2_normalize_backward_f32(long_and_short.data(), dy.data(), dx.data(), rows, width, LEAST); });
        return intact(long_and_short, dy, dx);
    });
}

} // namespace

void check_rows(Bench& bench) {
    for (unsigned width : {1u, 2u, 20u, 31u, 32u, 33u, 200u, 768u}) {
        for (unsigned rows : {1u, 3u, 9u}) {
            check_size(bench, rows, width, 1.0);
            check_size(bench, rows, width, 100.0);
        }
    }
}
