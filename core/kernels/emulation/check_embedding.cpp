// Checks embedding.cu: patches of whole vectors and of other sizes, prefixes of one and of five rows, tensors aligned
// or not.
//
// Each result is rounded once to its type. A normalised pixel has two more roundings in float32.

#include "workbench.h"

using reference::Expected;
using reference::Values;

extern "C" {
#define DECLARE(T, NAME)                                                                                               \
    void patchify_##NAME(const float*, const float*, const float*, T*, unsigned, unsigned, unsigned);               \
    void assemble_tokens_##NAME(const T*, const T*, const T*, T*, unsigned, unsigned);
DECLARE(float, f32)
DECLARE(bf16, bf16)
}

namespace {

template <class T> struct Kernels {
    std::string name;
    void (*patchify)(const float*, const float*, const float*, T*, unsigned, unsigned, unsigned);
    void (*assemble)(const T*, const T*, const T*, T*, unsigned, unsigned);
};
const Kernels<float> F32 = {"f32", patchify_f32, assemble_tokens_f32};
const Kernels<bf16> BF16 = {"bf16", patchify_bf16, assemble_tokens_bf16};

/// `offset` has a bit for each tensor that is not aligned: 1 for the images, 2 for the output.
template <class T>
void check_patchify(Bench& bench, const Kernels<T>& kernels, unsigned side, unsigned patch, bool normalised,
                    size_t offset) {
    const unsigned images = 2, channels = 3, grid = side / patch;
    const std::string what = "patchify_" + kernels.name;
    const std::string at = std::to_string(side) + " by " + std::to_string(patch) + " normalised " +
                           std::to_string(normalised) + " offset " + std::to_string(offset);
    Buffer<float> pixels(normal(bench.random, images * channels * side * side), offset & 1);
    const size_t values = normalised ? channels : 0;
    Buffer<float> mean(normal(bench.random, values, 0.1, 0.5)), scale(normal(bench.random, values, 0.3, 4.0));
    const double bound = UNIT<T> + (normalised ? 2.0 * UNIT<float> : 0.0);
    in_all_orders(bench.table, what, at, [&](Order order) {
        Buffer<T> y(pixels.values().size(), offset >> 1);
        emulation::launch({grid * grid, images}, {128}, 0, order, [&] {
            kernels.patchify(pixels.data(), mean.pointer(), scale.pointer(), y.data(), channels, side, patch);
        });
        if (!intact(pixels, mean, scale, y)) bench.table.miss(what, at + ": overwrote a guard or an input");
        if (order == Order::forward) {
            const Expected expected =
                reference::patchify(pixels.values(), mean.values(), scale.values(), channels, side, patch);
            bench.table.compare(what, at, y.values(), expected, 1, false, bound);
        }
        return y.content();
    });
}

/// `offset` has a bit for each tensor that is not aligned: 1 for the patches, 2 for the prefix, 4 for positions, 8 for
/// the output.
template <class T>
void check_assemble(Bench& bench, const Kernels<T>& kernels, unsigned prefix_rows, unsigned patches, unsigned width,
                    size_t offset) {
    const unsigned images = 3;
    const std::string what = "assemble_tokens_" + kernels.name;
    const std::string at = std::to_string(prefix_rows) + " and " + std::to_string(patches) + " by " +
                           std::to_string(width) + " offset " + std::to_string(offset);
    Buffer<T> embedded(normal(bench.random, images * patches * width), offset & 1);
    Buffer<T> prefix(normal(bench.random, prefix_rows * width), offset >> 1 & 1);
    Buffer<T> positions(normal(bench.random, patches * width), offset >> 2 & 1);
    in_all_orders(bench.table, what, at, [&](Order order) {
        Buffer<T> y(images * (prefix_rows + patches) * width, offset >> 3);
        emulation::launch({prefix_rows + patches, images}, {128}, 0, order, [&] {
            kernels.assemble(embedded.data(), prefix.data(), positions.data(), y.data(), prefix_rows, width);
        });
        if (!intact(embedded, prefix, positions, y)) bench.table.miss(what, at + ": overwrote a guard or an input");
        if (order == Order::forward) {
            const Expected expected = reference::assemble_tokens(embedded.values(), prefix.values(), positions.values());
            bench.table.compare(what, at, y.values(), expected, 1, false, UNIT<T>);
        }
        return y.content();
    });
}

template <class T> void check_all(Bench& bench, const Kernels<T>& kernels) {
    for (bool normalised : {false, true}) {
        for (auto [side, patch] : {std::pair{7u, 7u}, {28u, 7u}, {28u, 14u}, {8u, 4u}, {32u, 16u}, {48u, 16u}, {64u, 32u}}) {
            for (size_t offset : {0, 1, 2}) check_patchify(bench, kernels, side, patch, normalised, offset);
        }
    }
    for (unsigned width : {1u, 7u, 8u, 48u, 192u, 768u, 1280u}) {
        for (unsigned prefix_rows : {1u, 5u}) {
            for (size_t offset : {0, 1, 2, 4, 8}) check_assemble(bench, kernels, prefix_rows, 4, width, offset);
        }
    }
}

} // namespace

void check_embedding(Bench& bench) {
    check_all(bench, F32);
    check_all(bench, BF16);
}
