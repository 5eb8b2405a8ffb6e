// Reference values of all operations in double precision, each with the magnitude to which its error is relative.
#pragma once

#include <math.h>

#include <algorithm>
#include <vector>

namespace reference {

/// Values and, for each, the magnitude (`size`) to which its rounding error is relative.
struct Expected {
    std::vector<double> value, size;
    explicit Expected(size_t n = 0) : value(n), size(n) {}
    size_t count() const { return value.size(); }
};

using Values = std::vector<double>;

inline double cdf(double x) { return 0.5 * erfc(-x * M_SQRT1_2); }

/// Computes GELU. Errors are relative to |x|: Φ is computed from 1 + erf, whose rounding error is absolute.
inline Expected gelu(const Values& x) {
    Expected y(x.size());
    for (size_t i = 0; i < x.size(); ++i) y.value[i] = x[i] * cdf(x[i]), y.size[i] = fabs(x[i]);
    return y;
}

/// Computes the gradient of GELU. Errors are relative to |dy|, or to the result where the slope is above 1.
inline Expected gelu_backward(const Values& x, const Values& dy) {
    Expected dx(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
        const double slope = cdf(x[i]) + x[i] * exp(-0.5 * x[i] * x[i]) / sqrt(2.0 * M_PI);
        dx.value[i] = dy[i] * slope, dx.size[i] = fabs(dy[i]) * std::max(1.0, slope);
    }
    return dx;
}

struct Normalised {
    Values x;
    double deviation;
};

inline Normalised normalise(const double* x, size_t width, double eps) {
    double mean = 0.0, variance = 0.0;
    for (size_t i = 0; i < width; ++i) mean += x[i] / width;
    for (size_t i = 0; i < width; ++i) variance += (x[i] - mean) * (x[i] - mean) / width;
    Normalised row{Values(width), sqrt(variance + eps)};
    for (size_t i = 0; i < width; ++i) row.x[i] = (x[i] - mean) / row.deviation;
    return row;
}

inline Expected layer_norm(const Values& x, const Values& gamma, const Values& beta, double eps) {
    const size_t width = gamma.size();
    Expected y(x.size());
    for (size_t at = 0; at < x.size(); at += width) {
        const Normalised row = normalise(&x[at], width, eps);
        for (size_t i = 0; i < width; ++i) {
            const double scaled = row.x[i] * gamma[i];
            y.value[at + i] = scaled + beta[i], y.size[at + i] = hypot(scaled, beta[i]);
        }
    }
    return y;
}

/// Computes `dx = (g - mean(g) - x̂ mean(g x̂)) / deviation + plus` with `g = γ dy`. `plus` may be empty.
inline Expected layer_norm_backward(const Values& x, const Values& gamma, const Values& dy, const Values& plus,
                                    double eps) {
    const size_t width = gamma.size();
    Expected dx(x.size());
    for (size_t at = 0; at < x.size(); at += width) {
        const Normalised row = normalise(&x[at], width, eps);
        double mean = 0.0, projection = 0.0;
        for (size_t i = 0; i < width; ++i) {
            const double g = gamma[i] * dy[at + i];
            mean += g / width;
            projection += g * row.x[i] / width;
        }
        for (size_t i = 0; i < width; ++i) {
            const double g = gamma[i] * dy[at + i], along = row.x[i] * projection;
            const double residual = plus.empty() ? 0.0 : plus[at + i];
            dx.value[at + i] = (g - mean - along) / row.deviation + residual;
            dx.size[at + i] = hypot(residual, hypot(g, hypot(mean, along)) / row.deviation);
        }
    }
    return dx;
}

/// Divides images `(B, C, S, S)` into patches `(B, G G, C p p)` of `(x - mean) * scale` per channel; `mean` and `scale`
/// may be empty. Errors are relative to the values.
inline Expected patchify(const Values& pixels, const Values& mean, const Values& scale, size_t channels, size_t side,
                            size_t patch) {
    Expected y;
    const size_t grid = side / patch, images = pixels.size() / (channels * side * side);
    for (size_t b = 0; b < images; ++b) {
        for (size_t row = 0; row < grid; ++row) {
            for (size_t column = 0; column < grid; ++column) {
                for (size_t c = 0; c < channels; ++c) {
                    for (size_t i = 0; i < patch; ++i) {
                        for (size_t j = 0; j < patch; ++j) {
                            double x = pixels[((b * channels + c) * side + row * patch + i) * side + column * patch + j];
                            if (!mean.empty()) x = (x - mean[c]) * scale[c];
                            y.value.push_back(x), y.size.push_back(fabs(x));
                        }
                    }
                }
            }
        }
    }
    return y;
}

/// Concatenates `prefix` and `embedded + positions` for each image. Errors are relative to the values.
inline Expected assemble_tokens(const Values& embedded, const Values& prefix, const Values& positions) {
    Expected y;
    for (size_t at = 0; at < embedded.size(); at += positions.size()) {
        for (double x : prefix) y.value.push_back(x), y.size.push_back(fabs(x));
        for (size_t i = 0; i < positions.size(); ++i) {
            y.value.push_back(embedded[at + i] + positions[i]), y.size.push_back(fabs(y.value.back()));
        }
    }
    return y;
}

/// Computes the logarithm of the softmax of rows of `width` elements. Errors are relative to the magnitudes that are
/// added and subtracted.
inline Expected log_softmax(const Values& x, size_t width) {
    Expected y(x.size());
    for (size_t at = 0; at < x.size(); at += width) {
        const double top = *std::max_element(&x[at], &x[at] + width);
        double sum = 0.0;
        for (size_t i = 0; i < width; ++i) sum += exp(x[at + i] - top);
        for (size_t i = 0; i < width; ++i) {
            y.value[at + i] = x[at + i] - top - log(sum);
            y.size[at + i] = 1.0 + fabs(x[at + i] - top) + fabs(log(sum));
        }
    }
    return y;
}

/// Computes the gradient of the input of `log_softmax` for its output `y`.
inline Expected log_softmax_backward(const Values& y, const Values& dy, size_t width) {
    Expected dx(y.size());
    for (size_t at = 0; at < y.size(); at += width) {
        double sum = 0.0, size = 0.0;
        for (size_t i = 0; i < width; ++i) sum += dy[at + i], size += fabs(dy[at + i]);
        for (size_t i = 0; i < width; ++i) {
            dx.value[at + i] = dy[at + i] - exp(y[at + i]) * sum;
            dx.size[at + i] = fabs(dy[at + i]) + exp(y[at + i]) * (1.0 + fabs(y[at + i])) * size;
        }
    }
    return dx;
}

inline double norm(const double* x, size_t width) {
    double squares = 0.0;
    for (size_t i = 0; i < width; ++i) squares += x[i] * x[i];
    return sqrt(squares);
}

/// Divides rows of `width` elements by their norms. Errors are relative to the values.
inline Expected l2_normalize(const Values& x, size_t width, double min_norm) {
    Expected y(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
        y.value[i] = x[i] / std::max(norm(&x[i / width * width], width), min_norm), y.size[i] = fabs(y.value[i]);
    }
    return y;
}

inline Expected l2_normalize_backward(const Values& x, const Values& dy, size_t width, double min_norm) {
    Expected dx(x.size());
    for (size_t at = 0; at < x.size(); at += width) {
        const double length = norm(&x[at], width);
        double along = 0.0, size = 0.0;
        for (size_t i = 0; i < width && length > min_norm; ++i) {
            along += x[at + i] / length * dy[at + i], size += fabs(x[at + i] / length * dy[at + i]);
        }
        for (size_t i = 0; i < width; ++i) {
            const double divisor = std::max(length, min_norm);
            dx.value[at + i] = (dy[at + i] - x[at + i] / divisor * along) / divisor;
            dx.size[at + i] = (fabs(dy[at + i]) + fabs(x[at + i] / divisor) * size) / divisor;
        }
    }
    return dx;
}

/// Gathers, for each image, the rows in `places`, which count the rows of `own`, then those of `shared`. Errors are
/// relative to the values.
inline Expected gather_rows(const Values& own, const Values& shared, const std::vector<unsigned>& places, size_t images,
                            size_t own_rows, size_t width) {
    Expected y;
    for (size_t b = 0; b < images; ++b) {
        for (size_t place : places) {
            for (size_t i = 0; i < width; ++i) {
                const double x = place < own_rows ? own[(b * own_rows + place) * width + i]
                                                  : shared[(place - own_rows) * width + i];
                y.value.push_back(x), y.size.push_back(fabs(x));
            }
        }
    }
    return y;
}

/// Computes the gradients of `own`, then of `shared`; 0 for rows that are not in `places`.
inline Expected scatter_rows(const Values& dy, const std::vector<unsigned>& places, size_t images, size_t own_rows,
                             size_t shared_rows, size_t width) {
    Expected dx((images * own_rows + shared_rows) * width);
    for (size_t b = 0; b < images; ++b) {
        for (size_t r = 0; r < places.size(); ++r) {
            const size_t row = places[r] < own_rows ? b * own_rows + places[r] : images * own_rows + places[r] - own_rows;
            for (size_t i = 0; i < width; ++i) {
                const double x = dy[(b * places.size() + r) * width + i];
                dx.value[row * width + i] += x;
                dx.size[row * width + i] = hypot(dx.size[row * width + i], x);
            }
        }
    }
    return dx;
}

struct Sizes {
    size_t batch, tokens, extra, heads, head_dim;
    size_t width() const { return heads * head_dim; }
    size_t keys() const { return extra + tokens; }
};

struct Attention {
    Expected y, lse, delta, d_qkv, d_extra;
    /// Magnitudes of a score's rounding errors, as root mean squares over all pairs of query and key: of the score's
    /// terms, whose factors may be rounded to tf32, and of its partial sums, which are rounded to float32.
    double score_terms = 0.0, score_sums = 0.0;
};

/// Computes attention and its gradients. Errors of sums are relative to the root of the sum of squared terms.
inline Attention attention(const Sizes& s, const Values& qkv, const Values& extra, const Values& dy, double scale) {
    const size_t width = s.width(), d = s.head_dim;
    const double pairs = static_cast<double>(s.batch * s.heads * s.tokens * s.keys());
    Attention a{Expected(s.batch * s.tokens * width), Expected(s.batch * s.heads * s.tokens),
                Expected(s.batch * s.heads * s.tokens), Expected(qkv.size()), Expected(extra.size())};
    for (size_t b = 0; b < s.batch; ++b) {
        for (size_t h = 0; h < s.heads; ++h) {
            const auto token = [&](size_t n, size_t part) { return ((b * s.tokens + n) * 3 + part) * width + h * d; };
            const auto injected = [&](size_t e, size_t part) { return ((b * s.extra + e) * 2 + part) * width + h * d; };
            const auto key = [&](size_t j, size_t part) { // 0: key, 1: value
                return j < s.extra ? &extra[injected(j, part)] : &qkv[token(j - s.extra, 1 + part)];
            };
            const auto add = [&](size_t j, size_t part, size_t i, double term, double size) {
                Expected& to = j < s.extra ? a.d_extra : a.d_qkv;
                const size_t at = (j < s.extra ? injected(j, part) : token(j - s.extra, 1 + part)) + i;
                to.value[at] += term, to.size[at] = hypot(to.size[at], size);
            };
            for (size_t n = 0; n < s.tokens; ++n) {
                const double* q = &qkv[token(n, 0)];
                const size_t y_at = (b * s.tokens + n) * width + h * d;
                Values weight(s.keys());
                double top = -INFINITY, sum = 0.0;
                for (size_t j = 0; j < s.keys(); ++j) {
                    for (size_t i = 0; i < d; ++i) {
                        const double term = q[i] * key(j, 0)[i] * scale;
                        weight[j] += term;
                        a.score_terms += term * term / pairs, a.score_sums += weight[j] * weight[j] / pairs;
                    }
                    top = std::max(top, weight[j]);
                }
                for (double& w : weight) sum += w = exp(w - top);
                for (double& w : weight) w /= sum;
                const size_t row = (b * s.heads + h) * s.tokens + n;
                a.lse.value[row] = top + log(sum), a.lse.size[row] = 1.0 + fabs(a.lse.value[row]);

                for (size_t j = 0; j < s.keys(); ++j) {
                    for (size_t i = 0; i < d; ++i) {
                        const double term = weight[j] * key(j, 1)[i];
                        a.y.value[y_at + i] += term, a.y.size[y_at + i] = hypot(a.y.size[y_at + i], term);
                    }
                }
                for (size_t i = 0; i < d; ++i) {
                    const double term = a.y.value[y_at + i] * dy[y_at + i];
                    a.delta.value[row] += term, a.delta.size[row] = hypot(a.delta.size[row], term);
                }
                for (size_t j = 0; j < s.keys(); ++j) {
                    double d_weight = 0.0, d_size = a.delta.size[row];
                    for (size_t i = 0; i < d; ++i) {
                        const double term = dy[y_at + i] * key(j, 1)[i];
                        d_weight += term, d_size = hypot(d_size, term);
                    }
                    const double d_score = weight[j] * (d_weight - a.delta.value[row]) * scale;
                    const double size = weight[j] * d_size * scale;
                    for (size_t i = 0; i < d; ++i) {
                        const size_t q_at = token(n, 0) + i;
                        a.d_qkv.value[q_at] += d_score * key(j, 0)[i];
                        a.d_qkv.size[q_at] = hypot(a.d_qkv.size[q_at], size * key(j, 0)[i]);
                        add(j, 0, i, d_score * q[i], size * q[i]);
                        add(j, 1, i, weight[j] * dy[y_at + i], weight[j] * dy[y_at + i]);
                    }
                }
            }
        }
    }
    a.score_terms = sqrt(a.score_terms), a.score_sums = sqrt(a.score_sums);
    return a;
}

} // namespace reference
