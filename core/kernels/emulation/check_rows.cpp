// Checks rows.cu: short and long rows, scores in the hundreds, rows that are zero or whose norm is below the minimum.
//
// All arithmetic is float32: a sum of n terms has an error of about √n u, a function of a few u.

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

constexpr float MIN_NORM = 1e-12f;

/// `run(out)` launches a kernel that writes `out` and returns whether guards and inputs are intact.
template <class F>
void check(Bench& bench, const std::string& what, const std::string& at, const Expected& expected, double bound, F run) {
    in_all_orders(bench.table, what, at, [&](Order order) {
        Buffer<float> out(expected.count());
        if (!run(out, order)) bench.table.miss(what, at + ": overwrote a guard or an input");
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

    Values x_values = x.values();
    // The last row is zero. The norm of the row before it is below the minimum.
    for (unsigned i = 0; i < width; ++i) {
        x_values[n - width + i] = 0.0;
        if (rows > 1) x_values[n - 2 * width + i] *= 1e-16;
    }
    Buffer<float> rows_of_x(x_values);
    const Expected normalised = reference::l2_normalize(rows_of_x.values(), width, MIN_NORM);
    check(bench, "l2_normalize_forward", at, normalised, bound, [&](Buffer<float>& out, Order order) {
        launch(order, [&] { l2_normalize_forward_f32(rows_of_x.data(), out.data(), rows, width, MIN_NORM); });
        return intact(rows_of_x, out);
    });
    const Expected d_normalised = reference::l2_normalize_backward(rows_of_x.values(), dy.values(), width, MIN_NORM);
    check(bench, "l2_normalize_backward", at, d_normalised, 2.0 * bound, [&](Buffer<float>& dx, Order order) {
        const auto kernel = [&] {
            l2_normalize_backward_f32(rows_of_x.data(), dy.data(), dx.data(), rows, width, MIN_NORM);
        };
        launch(order, kernel);
        return intact(rows_of_x, dy, dx);
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
