// Checks injection.cu: own rows, shared rows and both, gathered in shuffled order, and rows that no place contains.
//
// Gathered values are rounded once to their type. Gradients of shared rows are sums in float32.

#include "workbench.h"

#include <numeric>

using reference::Expected;
using reference::Values;

extern "C" {
#define DECLARE(T, NAME)                                                                                               \
    void gather_rows_##NAME(const float*, const float*, const unsigned*, T*, unsigned, unsigned);                      \
    void scatter_rows_##NAME(const T*, const unsigned*, float*, float*, unsigned, unsigned);
DECLARE(float, f32)
DECLARE(bf16, bf16)
}

namespace {

template <class T> struct Kernels {
    std::string name;
    void (*gather)(const float*, const float*, const unsigned*, T*, unsigned, unsigned);
    void (*scatter)(const T*, const unsigned*, float*, float*, unsigned, unsigned);
};
const Kernels<float> F32 = {"f32", gather_rows_f32, scatter_rows_f32};
const Kernels<bf16> BF16 = {"bf16", gather_rows_bf16, scatter_rows_bf16};

/// `offset` has a bit for each tensor that is not aligned: 1 for `own`, 2 for `shared`, 4 for `rows`.
template <class T>
void check(Bench& bench, const Kernels<T>& kernels, unsigned own_rows, unsigned shared_rows, unsigned unused,
           unsigned width, size_t offset) {
    const unsigned images = 3;
    const std::string at = std::to_string(own_rows) + " own " + std::to_string(shared_rows) + " shared without " +
                           std::to_string(unused) + " by " + std::to_string(width) + " offset " +
                           std::to_string(offset);
    std::vector<unsigned> places(own_rows + shared_rows);
    std::iota(places.begin(), places.end(), 0u);
    std::shuffle(places.begin(), places.end(), bench.random);
    places.resize(places.size() - unused);
    const std::vector<unsigned> given = places;
    const unsigned count = static_cast<unsigned>(places.size());

    Buffer<float> own(normal(bench.random, images * own_rows * width), offset & 1);
    Buffer<float> shared(normal(bench.random, shared_rows * width), offset >> 1 & 1);
    const std::string gather = "gather_rows_" + kernels.name;
    in_all_orders(bench.table, gather, at, [&](Order order) {
        Buffer<T> rows(images * count * width, offset >> 2);
        emulation::launch({count, images}, {128}, 0, order, [&] {
            kernels.gather(own.pointer(), shared.pointer(), places.data(), rows.data(), own_rows, width);
        });
        if (!intact(own, shared, rows) || places != given) {
            bench.table.miss(gather, at + ": overwrote a guard or an input");
        }
        if (order == Order::forward) {
            const Expected expected =
                reference::gather_rows(own.values(), shared.values(), places, images, own_rows, width);
            bench.table.compare(gather, at, rows.values(), expected, 1, false, UNIT<T>);
        }
        return rows.content();
    });

    Buffer<T> d_rows(normal(bench.random, images * count * width), offset >> 2);
    const std::string scatter = "scatter_rows_" + kernels.name;
    in_all_orders(bench.table, scatter, at, [&](Order order) {
        Buffer<float> d_own(images * own_rows * width, offset & 1), d_shared(shared_rows * width, offset >> 1 & 1);
        if (unused > 0) {
            memset(d_own.data(), 0, images * own_rows * width * sizeof(float));
            memset(d_shared.data(), 0, shared_rows * width * sizeof(float));
        }
        emulation::launch({count, images}, {128}, 0, order, [&] {
            kernels.scatter(d_rows.data(), places.data(), d_own.pointer(), d_shared.pointer(), own_rows, width);
        });
        if (!intact(d_rows, d_own, d_shared)) bench.table.miss(scatter, at + ": overwrote a guard or an input");
        std::vector<unsigned char> content = d_own.content();
        const std::vector<unsigned char> more = d_shared.content();
        content.insert(content.end(), more.begin(), more.end());
        if (order == Order::forward) {
            const Expected expected =
                reference::scatter_rows(d_rows.values(), places, images, own_rows, shared_rows, width);
            Values found = d_own.values();
            const Values rest = d_shared.values();
            found.insert(found.end(), rest.begin(), rest.end());
            bench.table.compare(scatter, at, found, expected, 1, false, 4.0 * UNIT<float>);
        }
        return content;
    });
}

template <class T> void check_all(Bench& bench, const Kernels<T>& kernels) {
    for (unsigned width : {1u, 7u, 8u, 48u, 192u, 768u, 1280u}) {
        for (auto [own_rows, shared_rows] : {std::pair{6u, 0u}, {0u, 6u}, {8u, 12u}}) {
            for (size_t offset : {0, 1, 2, 4}) check(bench, kernels, own_rows, shared_rows, 0, width, offset);
            check(bench, kernels, own_rows, shared_rows, 2, width, 0);
        }
    }
}

} // namespace

void check_injection(Bench& bench) {
    check_all(bench, F32);
    check_all(bench, BF16);
}
