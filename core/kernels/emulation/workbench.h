// Shared code of the checks of all kernels: buffers between guards, launches in several orders, the table of errors.
#pragma once

#include <map>
#include <string>

#include "cuda_on_cpu.h"
#include "reference.h"

using bf16 = __nv_bfloat16;

/// Unit roundoff, half the distance from 1 to the next number.
template <class T> constexpr double UNIT = 0x1p-24;
template <> constexpr double UNIT<bf16> = 0x1p-8;
constexpr double UNIT_TF32 = 0x1p-11;

inline double number(float x) { return x; }
inline double number(bf16 x) { return __bfloat162float(x); }
template <class T> T rounded(double x);
template <> inline float rounded<float>(double x) { return static_cast<float>(x); }
template <> inline bf16 rounded<bf16>(double x) { return __float2bfloat16_rn(static_cast<float>(x)); }

/// Device memory: `count` elements between guards, `offset` elements after an address aligned to 16 bytes.
template <class T> class Buffer {
    static constexpr size_t GUARD = 512;
    static constexpr unsigned char FILL = 0xff; // NaN in every type
    size_t count, start, bytes;
    unsigned char* memory;
    std::vector<T> given;

  public:
    /// Creates an output, filled with NaN to detect elements that no thread writes.
    explicit Buffer(size_t count, size_t offset = 0)
        : count(count), start(GUARD + offset * sizeof(T)), bytes(start + count * sizeof(T) + GUARD) {
        void* p = nullptr;
        if (posix_memalign(&p, 16, bytes)) emulation::fail("out of memory", std::source_location::current());
        memory = static_cast<unsigned char*>(p);
        memset(memory, FILL, bytes);
        guard(true);
    }

    /// Creates an input, which no kernel may change.
    explicit Buffer(const reference::Values& values, size_t offset = 0) : Buffer(values.size(), offset) {
        for (size_t i = 0; i < count; ++i) data()[i] = rounded<T>(values[i]);
        given.assign(data(), data() + count);
    }

    Buffer(const Buffer&) = delete;
    ~Buffer() {
        guard(false);
        free(memory);
    }

    T* data() { return reinterpret_cast<T*>(memory + start); }
    /// Returns the address of the elements, or null if there are none.
    T* pointer() { return count > 0 ? data() : nullptr; }

    /// Returns the values as the kernels read or left them.
    reference::Values values() {
        reference::Values values(count);
        for (size_t i = 0; i < count; ++i) values[i] = number(data()[i]);
        return values;
    }

    std::vector<unsigned char> content() { return {memory + start, memory + start + count * sizeof(T)}; }

    /// Returns whether the guards, and the elements of an input, are unchanged.
    bool intact() {
        guard(false);
        bool intact = given.empty() || memcmp(given.data(), data(), count * sizeof(T)) == 0;
        for (size_t i = 0; i < bytes; ++i) {
            if (i < start || i >= start + count * sizeof(T)) intact &= memory[i] == FILL;
        }
        guard(true);
        return intact;
    }

  private:
    void guard([[maybe_unused]] bool on) {
#if defined(__SANITIZE_ADDRESS__)
        unsigned char* end = memory + start + count * sizeof(T);
        if (on) {
            ASAN_POISON_MEMORY_REGION(memory, start);
            ASAN_POISON_MEMORY_REGION(end, memory + bytes - end);
        } else {
            ASAN_UNPOISON_MEMORY_REGION(memory, bytes);
        }
#endif
    }
};

/// Errors of every entry point, relative to their bounds.
class Table {
    struct Line {
        size_t cases = 0;
        double error = 0.0, bound = 1.0;
        std::string at;
    };
    std::map<std::string, Line> lines;
    size_t misses = 0;

  public:
    void miss(const std::string& what, const std::string& at) {
        if (++misses <= 20) printf("FAILED %s: %s\n", what.c_str(), at.c_str());
        fflush(stdout);
    }

    /// Compares rows of `row` elements. The error of a row is the norm of the difference relative to the norm of the
    /// expected magnitudes of the row or, if `typical`, to their root mean square over all rows if that is larger.
    void compare(const std::string& what, const std::string& at, const reference::Values& got,
                 const reference::Expected& expected, size_t row, bool typical, double bound) {
        const auto norm = [row](const double* x) {
            double squares = 0.0;
            for (size_t i = 0; i < row; ++i) squares += x[i] * x[i];
            return sqrt(squares);
        };
        double mean = 0.0, worst = 0.0;
        const size_t rows = expected.count() / row;
        for (size_t r = 0; r < rows && typical; ++r) mean += pow(norm(&expected.size[r * row]), 2) / rows;
        for (size_t r = 0; r < rows; ++r) {
            reference::Values error(row);
            for (size_t i = 0; i < row; ++i) error[i] = got[r * row + i] - expected.value[r * row + i];
            const double distance = norm(error.data());
            const double size = std::max(norm(&expected.size[r * row]), sqrt(mean));
            const double relative = distance == 0.0 ? 0.0 : distance / size;
            // An element that was not written is NaN.
            worst = std::isnan(relative) ? INFINITY : std::max(worst, relative);
        }
        Line& line = lines[what];
        ++line.cases;
        if (line.cases == 1 || worst / bound > line.error / line.bound) {
            line.error = worst, line.bound = bound, line.at = at;
        }
        if (!(worst <= bound)) {
            char text[64];
            snprintf(text, sizeof text, ": %.3g, bound %.3g", worst, bound);
            miss(what, at + text);
        }
    }

    /// Prints the table and returns the exit status.
    int report() const {
        printf("%-32s %5s  %9s %9s %6s  %s\n", "", "cases", "error", "bound", "ratio", "worst at");
        for (const auto& [what, line] : lines) {
            printf("%-32s %5zu  %9.2e %9.2e %6.2f  %s\n", what.c_str(), line.cases, line.error, line.bound,
                   line.error / line.bound, line.at.c_str());
        }
        printf("%zu failures\n", misses);
        return misses == 0 ? 0 : 1;
    }
};

/// Arguments of the checks of one kernel file.
struct Bench {
    Table table;
    std::mt19937 random;
};

void check_elementwise(Bench& bench);
void check_layer_norm(Bench& bench);
void check_attention(Bench& bench);
void check_embedding(Bench& bench);
void check_injection(Bench& bench);
void check_rows(Bench& bench);
void check_flat(Bench& bench);

using emulation::Order;

/// Calls `run(order)` with several orders of the threads. The bytes that it returns must not depend on the order.
template <class F> void in_all_orders(Table& table, const std::string& what, const std::string& at, F run) {
    const std::vector<unsigned char> first = run(Order::forward);
    for (Order order : {Order::backward, Order::shuffled}) {
        if (run(order) != first) table.miss(what, at + ": depends on the order of the threads");
    }
}

inline unsigned groups(size_t count, size_t of) { return static_cast<unsigned>((count + of - 1) / of); }

template <class... T> bool intact(Buffer<T>&... buffers) { return (buffers.intact() & ...); }

/// Draws normal numbers with `deviation` and `mean`.
inline reference::Values normal(std::mt19937& random, size_t count, double deviation = 1.0, double mean = 0.0) {
    std::normal_distribution<double> distribution(mean, deviation);
    reference::Values values(count);
    for (double& value : values) value = distribution(random);
    return values;
}
