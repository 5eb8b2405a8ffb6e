// Checks attention.cu: forward, delta and both backward kernels, in the order of a training step.
//
// Roundings to bf16, one u = 2^-8 each: every result; the weights, before they multiply values or gradients; the
// scores' gradients, before they multiply keys or queries; the output y, in delta. Roundings to tf32, u = 2^-11: both
// factors of every product. An absolute error e of a score is a relative error e of its weight. In float32, e is u
// times the root of the score's squared partial sums; factors rounded to tf32 add 2 u times the root of its squared
// terms. All other float32 arithmetic adds 4 u. Float32 errors count four times, because the worst of some thousand
// rows deviates that far. A row of delta is one number, in which errors do not average out: its bound is doubled.

#include <array>

#include "workbench.h"

using reference::Expected;
using reference::Values;

extern "C" {
#define DECLARE(T, NAME, P)                                                                                            \
    void attention_forward_##NAME##_##P(const T*, const T*, T*, float*, unsigned, unsigned, unsigned, unsigned,        \
                                        unsigned, float);                                                              \
    void attention_backward_queries_##NAME##_##P(const T*, const T*, const T*, const float*, const float*, T*,         \
                                                 unsigned, unsigned, unsigned, unsigned, unsigned, float);             \
    void attention_backward_keys_##NAME##_##P(const T*, const T*, const T*, const float*, const float*, T*, T*,        \
                                              unsigned, unsigned, unsigned, unsigned, unsigned, float);
#define DECLARE_WIDTHS(T, NAME) DECLARE(T, NAME, 32) DECLARE(T, NAME, 64) DECLARE(T, NAME, 96) DECLARE(T, NAME, 128)
DECLARE_WIDTHS(float, f32)
DECLARE_WIDTHS(float, tf32)
DECLARE_WIDTHS(bf16, bf16)
void attention_delta_f32(const float*, const float*, float*, unsigned, unsigned, unsigned, unsigned);
void attention_delta_bf16(const bf16*, const bf16*, float*, unsigned, unsigned, unsigned, unsigned);
}

namespace {

enum class Arithmetic { f32, tf32, bf16 };

/// Kernels for heads of at most `padded` channels.
template <class T> struct Kernels {
    std::string name;
    unsigned padded;
    void (*forward)(const T*, const T*, T*, float*, unsigned, unsigned, unsigned, unsigned, unsigned, float);
    void (*queries)(const T*, const T*, const T*, const float*, const float*, T*, unsigned, unsigned, unsigned,
                    unsigned, unsigned, float);
    void (*keys)(const T*, const T*, const T*, const float*, const float*, T*, T*, unsigned, unsigned, unsigned,
                 unsigned, unsigned, float);
};
#define KERNELS(NAME, P)                                                                                               \
    {#NAME, P, attention_forward_##NAME##_##P, attention_backward_queries_##NAME##_##P,                                \
     attention_backward_keys_##NAME##_##P}
#define ALL_WIDTHS(NAME) {KERNELS(NAME, 32), KERNELS(NAME, 64), KERNELS(NAME, 96), KERNELS(NAME, 128)}
const Kernels<float> F32[] = ALL_WIDTHS(f32), TF32[] = ALL_WIDTHS(tf32);
const Kernels<bf16> BF16[] = ALL_WIDTHS(bf16);

/// Bytes of shared memory by the launch contract of attention.cu.
struct Shared {
    size_t forward, queries, keys;

    Shared(Arithmetic arithmetic, size_t padded) {
        const bool half = arithmetic == Arithmetic::bf16;
        const size_t element = half ? 2 : 4, stride = padded + (half ? 8 : 4), narrow = padded <= 64 ? 32 : 16;
        const size_t f = half ? 64 : narrow, g = half ? 32 : narrow;
        const auto space = [&](size_t columns) { return arithmetic == Arithmetic::f32 ? 256 * (columns + 4) : 0; };
        forward = element * stride * (64 + 2 * f) + space(f);
        queries = element * stride * (128 + 2 * g) + space(g);
        keys = queries + 8 * g;
    }
};

/// Kind of input. `far_below`: all scores are about -300, but scores of padding are 0. `rising`: later keys have larger
/// scores, so that every tile has a new maximum.
enum class Kind { plain, far_below, rising };

struct Case {
    reference::Sizes sizes;
    Kind kind = Kind::plain;
    /// One bit per tensor, set if it is not aligned: 1 qkv, 2 extra, 4 dy, 8 y, 16 d_qkv, 32 d_extra.
    size_t offset = 0;
    size_t offset_of(int bit) const { return offset >> bit & 1; }

    std::string text() const {
        const char* kinds[] = {"", " far below", " rising"};
        char text[128];
        snprintf(text, sizeof text, "B %zu N %zu E %zu H %zu d %zu%s%s", sizes.batch, sizes.tokens, sizes.extra,
                 sizes.heads, sizes.head_dim, kinds[static_cast<int>(kind)], offset > 0 ? " unaligned" : "");
        return text;
    }
};

/// Sets the first element of each head's queries and keys such that the scores are of the kind `c.kind`.
void shape(Values& rows, size_t count, size_t parts, size_t first_key, const Case& c, double scale) {
    if (c.kind == Kind::plain) return;
    const reference::Sizes& s = c.sizes;
    const double root = sqrt(300.0 / scale);
    for (size_t row = 0; row < count * s.batch; ++row) {
        const double place = static_cast<double>(first_key + row % count) / s.keys();
        for (size_t head = 0; head < s.heads; ++head) {
            double* own = &rows[row * parts * s.width() + head * s.head_dim];
            if (parts == 3) own[0] = root;
            const size_t key = parts == 3 ? s.width() : 0;
            own[key] = c.kind == Kind::far_below ? -root : root * 0.1 * place;
        }
    }
}

/// Splits `qkv` `(B, N, 3D)` into queries, keys and values, each `(B, N, D)`.
std::array<Values, 3> split(const Values& qkv, const reference::Sizes& s) {
    std::array<Values, 3> parts;
    for (size_t at = 0; at < qkv.size(); at += s.width()) {
        Values& part = parts[at / s.width() % 3];
        part.insert(part.end(), &qkv[at], &qkv[at] + s.width());
    }
    return parts;
}

template <class T> void check(Bench& bench, Arithmetic arithmetic, const Kernels<T>* widths, const Case& c) {
    const reference::Sizes& s = c.sizes;
    const Kernels<T>* kernels = widths;
    while (kernels->padded < s.head_dim) ++kernels;
    const auto delta_kernel = [] {
        if constexpr (std::is_same_v<T, float>) return attention_delta_f32;
        else return attention_delta_bf16;
    }();
    const float scale = static_cast<float>(1.0 / sqrt(static_cast<double>(s.head_dim)));
    const Shared shared(arithmetic, kernels->padded);
    const std::string suffix = "_" + kernels->name + "_" + std::to_string(kernels->padded), at = c.text();

    Values own = normal(bench.random, s.batch * s.tokens * 3 * s.width());
    Values injected = normal(bench.random, s.batch * s.extra * 2 * s.width());
    shape(own, s.tokens, 3, s.extra, c, scale);
    shape(injected, s.extra, 2, 0, c, scale);
    Buffer<T> qkv(own, c.offset_of(0)), extra(injected, c.offset_of(1));
    Buffer<T> dy(normal(bench.random, s.batch * s.tokens * s.width()), c.offset_of(2));
    const reference::Attention expected = reference::attention(s, qkv.values(), extra.values(), dy.values(), scale);

    const double f = 4.0 * UNIT<float> * (4.0 + expected.score_sums);
    const bool half = arithmetic == Arithmetic::bf16, tf32 = arithmetic == Arithmetic::tf32;
    // If one term dominates the scores, all rows of a key or query have the same error, which does not average out.
    const double correlated = c.kind == Kind::plain ? 1.0 : 2.0;
    const double score = tf32 ? correlated * 2.0 * UNIT_TF32 * expected.score_terms : 0.0;
    const double rounding = half ? UNIT<bf16> : tf32 ? UNIT_TF32 : 0.0;

    in_all_orders(bench.table, "attention" + suffix, at, [&](Order order) {
        const size_t rows = s.batch * s.heads * s.tokens;
        const unsigned sizes[] = {static_cast<unsigned>(s.batch), static_cast<unsigned>(s.tokens),
                                  static_cast<unsigned>(s.extra), static_cast<unsigned>(s.heads),
                                  static_cast<unsigned>(s.head_dim)};
        const auto& [batch, tokens, extras, heads, head_dim] = sizes;
        Buffer<T> y(dy.values().size(), c.offset_of(3)), d_qkv(own.size(), c.offset_of(4));
        Buffer<T> d_extra(injected.size(), c.offset_of(5));
        Buffer<float> lse(rows), delta(rows);
        emulation::launch({groups(tokens, 64), heads, batch}, {128}, shared.forward, order, [&] {
            kernels->forward(qkv.data(), extra.pointer(), y.data(), lse.data(), batch, tokens, extras, heads,
                             head_dim, scale);
        });
        emulation::launch({groups(rows, 16)}, {128}, 0, order, [&] {
            delta_kernel(y.data(), dy.data(), delta.data(), batch, tokens, heads, head_dim);
        });
        emulation::launch({groups(tokens, 64), heads, batch}, {128}, shared.queries, order, [&] {
            kernels->queries(qkv.data(), extra.pointer(), dy.data(), lse.data(), delta.data(), d_qkv.data(), batch,
                             tokens, extras, heads, head_dim, scale);
        });
        emulation::launch({groups(tokens + extras, 64), heads, batch}, {128}, shared.keys, order, [&] {
            kernels->keys(qkv.data(), extra.pointer(), dy.data(), lse.data(), delta.data(), d_qkv.data(),
                          d_extra.pointer(), batch, tokens, extras, heads, head_dim, scale);
        });
        if (!intact(qkv, extra, dy, y, lse, delta, d_qkv, d_extra)) {
            bench.table.miss("attention" + suffix, at + ": overwrote a guard or an input");
        }
        std::vector<unsigned char> all = y.content();
        const auto append = [&](std::vector<unsigned char> more) { all.insert(all.end(), more.begin(), more.end()); };
        append(lse.content()), append(delta.content()), append(d_qkv.content()), append(d_extra.content());
        if (order != Order::forward) return all;

        // Rounded in y: weights and values (tf32), or weights and y (bf16).
        Table& table = bench.table;
        const size_t d = s.head_dim;
        table.compare("attention_forward" + suffix, at, y.values(), expected.y, d, true, f + score + 2.0 * rounding);
        table.compare("attention_forward" + suffix + " lse", at, lse.values(), expected.lse, 1, false, f + score);
        table.compare("attention_delta for " + kernels->name, at, delta.values(), expected.delta, 1, true,
                      2.0 * (f + score + 2.0 * rounding));
        // Rounded in dv: weights and dy (tf32) or weights and dv (bf16). In dq and dk: dy and v (tf32) or delta (bf16);
        // then the scores' gradients and the keys or queries (tf32) or the scores' gradients and the result (bf16).
        const auto parts = split(d_qkv.values(), s), right = split(expected.d_qkv.value, s);
        const auto size = split(expected.d_qkv.size, s);
        const char* names[] = {"attention_backward_queries", "attention_backward_keys", "attention_backward_keys"};
        const char* outputs[] = {" dq", " dk", " dv"};
        for (int part = 0; part < 3; ++part) {
            Expected of_part;
            of_part.value = right[part], of_part.size = size[part];
            const double bound = f + score + (part < 2 ? tf32 ? 4.0 : 3.0 : 2.0) * rounding;
            table.compare(names[part] + suffix + outputs[part], at, parts[part], of_part, d, true, bound);
        }
        if (s.extra > 0) {
            const double bound = f + score + (tf32 ? 4.0 : 3.0) * rounding;
            table.compare("attention_backward_keys" + suffix + " d_extra", at, d_extra.values(), expected.d_extra, d,
                          true, bound);
        }
        return all;
    });
}

/// A NaN key makes every row of its head NaN, so that diverging training is visible.
void check_nan(Bench& bench) {
    const unsigned tokens = 20, head_dim = 16, width = 2 * head_dim;
    Values own = normal(bench.random, tokens * 3 * width);
    own[7 * 3 * width + width + 5] = NAN;
    Buffer<float> qkv(own), y(tokens * width), lse(2 * tokens);
    emulation::launch({1, 2, 1}, {128}, Shared(Arithmetic::f32, 32).forward, Order::forward, [&] {
        attention_forward_f32_32(qkv.data(), nullptr, y.data(), lse.data(), 1, tokens, 0, 2, head_dim, 0.25f);
    });
    const Values values = y.values();
    for (size_t i = 0; i < values.size(); ++i) {
        const bool first_head = i % width < head_dim;
        if (std::isnan(values[i]) != first_head) {
            bench.table.miss("attention_forward_f32_32", "a NaN key must make all rows of its head NaN, and no others");
        }
    }
}

template <class T> void check_all(Bench& bench, Arithmetic arithmetic, const Kernels<T>* widths) {
    const auto run = [&](const Case& c) { check(bench, arithmetic, widths, c); };
    // Numbers of rows and keys around the tile sizes 16, 32 and 64, in every padded width; some heads are narrower.
    for (size_t head_dim : {8, 16, 24, 32, 64, 80, 96, 128}) {
        run({{2, 5, 1, 2, head_dim}});
        run({{1, 17, 16, 1, head_dim}});
    }
    for (size_t tokens : {1, 5, 16, 17, 50, 65}) {
        for (size_t extra : {0, 1, 5}) run({{1, tokens, extra, 2, 16}});
        run({{1, tokens, 16, 1, 64}});
    }
    for (size_t extra : {15, 47, 79}) run({{1, 17, extra, 1, 32}});
    for (size_t head_dim : {5, 12, 33, 100}) run({{2, 18, 3, 2, head_dim}});
    for (size_t offset : {1, 2, 4, 8, 16, 32}) run({{1, 5, 3, 1, 64}, Kind::plain, offset});
    for (Kind kind : {Kind::far_below, Kind::rising}) {
        run({{1, 20, 5, 2, 16}, kind});
        run({{1, 70, 10, 1, 64}, kind});
    }
    // Numbers of tokens of a ViT, with several prompt lengths.
    run({{1, 197, 0, 1, 64}});
    run({{1, 197, 20, 1, 64}});
    run({{1, 202, 10, 1, 64}});
    run({{1, 197, 5, 1, 32}});
    run({{1, 197, 0, 1, 128}});
}

} // namespace

void check_attention(Bench& bench) {
    check_nan(bench);
    check_all(bench, Arithmetic::f32, F32);
    check_all(bench, Arithmetic::tf32, TF32);
    check_all(bench, Arithmetic::bf16, BF16);
}
