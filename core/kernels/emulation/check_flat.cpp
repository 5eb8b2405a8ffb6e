// Checks flat.cu: tensors of several lengths, aligned or not in memory and in the row. Copies must be exact.

#include "workbench.h"

#include <limits>
#include <memory>

using size = unsigned long long;

extern "C" {
void gather_flat_f32(const size*, float*);
void scatter_flat_f32(const size*, const float*);
}

namespace {

/// Error bound that only exact results meet.
constexpr double EXACT = std::numeric_limits<double>::denorm_min();

void check(Bench& bench, const std::vector<size_t>& lengths, unsigned blocks, bool unaligned) {
    const unsigned count = static_cast<unsigned>(lengths.size());
    const std::string at = std::to_string(count) + " tensors, " + std::to_string(blocks) + " blocks" +
                           (unaligned ? " unaligned" : "");
    reference::Expected all;
    std::vector<size> starts = {0};
    for (size_t length : lengths) {
        const reference::Values values = normal(bench.random, length);
        for (double x : values) all.value.push_back(rounded<float>(x)), all.size.push_back(1.0);
        starts.push_back(all.count());
    }
    /// Returns tensors that contain the values if `given`, or are empty outputs, and writes their table.
    const auto tensors = [&](bool given, std::vector<size>& table) {
        std::vector<std::unique_ptr<Buffer<float>>> buffers;
        table.clear();
        for (unsigned t = 0; t < count; ++t) {
            const size_t offset = unaligned ? t % 4 : 0;
            const reference::Values own(all.value.begin() + starts[t], all.value.begin() + starts[t + 1]);
            buffers.push_back(given ? std::make_unique<Buffer<float>>(own, offset)
                                    : std::make_unique<Buffer<float>>(lengths[t], offset));
            table.push_back(reinterpret_cast<uintptr_t>(buffers.back()->data()));
        }
        table.insert(table.end(), starts.begin(), starts.end());
        return buffers;
    };
    std::vector<size> table;
    in_all_orders(bench.table, "gather_flat", at, [&](Order order) {
        const auto given = tensors(true, table);
        Buffer<float> row(all.count());
        emulation::launch({blocks, count}, {256}, 0, order, [&] { gather_flat_f32(table.data(), row.data()); });
        bool whole = row.intact();
        for (const auto& tensor : given) whole &= tensor->intact();
        if (!whole) bench.table.miss("gather_flat", at + ": overwrote a guard or an input");
        if (order == Order::forward) bench.table.compare("gather_flat", at, row.values(), all, 1, false, EXACT);
        return row.content();
    });
    in_all_orders(bench.table, "scatter_flat", at, [&](Order order) {
        const auto out = tensors(false, table);
        Buffer<float> row(all.value);
        emulation::launch({blocks, count}, {256}, 0, order, [&] { scatter_flat_f32(table.data(), row.data()); });
        bool whole = row.intact();
        reference::Values found;
        std::vector<unsigned char> content;
        for (const auto& tensor : out) {
            whole &= tensor->intact();
            const reference::Values own = tensor->values();
            found.insert(found.end(), own.begin(), own.end());
            const std::vector<unsigned char> bytes = tensor->content();
            content.insert(content.end(), bytes.begin(), bytes.end());
        }
        if (!whole) bench.table.miss("scatter_flat", at + ": overwrote a guard or an input");
        if (order == Order::forward) bench.table.compare("scatter_flat", at, found, all, 1, false, EXACT);
        return content;
    });
}

} // namespace

void check_flat(Bench& bench) {
    for (bool unaligned : {false, true}) {
        check(bench, {1}, 1, unaligned);
        check(bench, {4, 1, 3, 0, 8, 1024, 5, 2000, 7}, 1, unaligned);
        check(bench, {3000, 2, 4096, 1000}, 3, unaligned);
    }
}
