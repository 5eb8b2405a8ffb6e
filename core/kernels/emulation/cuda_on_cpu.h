// Replaces CUDA's headers: with it, a plain C++20 compiler builds the kernels for the CPU, to test them without a GPU.
//
// The threads of a block are fibers on one system thread. A fiber runs until a barrier or a warp instruction, which is
// executed when all lanes have reached it. The program ends with a message on errors that are undefined on a GPU:
//
//   - lanes of a warp, or threads of a block, that wait in different places, or for threads that have ended
//   - rows of `load_matrices` that are not aligned, or not in shared memory
//   - writes beyond dynamic shared memory (of exactly the launched size; with the address sanitizer, reads too)
//
// Dynamic shared memory is NaN when a block begins. The caller chooses the order of the fibers: forward, backward or
// shuffled. With a missing barrier, results differ between the orders.
//
// Not emulated: lockstep of a warp between two warp instructions; speed; the last bits of `exp2f`, `expf`, `erff` and
// `log2f`, which on a GPU are functions of CUDA; order and truncation of sums in tensor cores, which here are float32
// sums in the order of the index.
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <source_location>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

struct __nv_bfloat16 {
    uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/// Rounds to nearest, ties to even.
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (x != x) return {0x7fff};
    return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

namespace emulation {

using Place = std::source_location;

[[noreturn]] inline void fail(const char* what, Place place) {
    fprintf(stderr, "%s:%u: block (%u, %u, %u), thread %u: %s\n", place.file_name(), place.line(), blockIdx.x,
            blockIdx.y, blockIdx.z, threadIdx.x, what);
    fflush(nullptr);
    _Exit(1);
}

enum class Order { forward, backward, shuffled };

enum class State { ready, at_barrier, at_warp, ended };

struct Fiber {
    static constexpr size_t STACK = 256 << 10;
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[STACK]};
    void* fake_stack = nullptr; // of the address sanitizer
    void* jump_buffer[5]; // where the fiber continues
    bool started = false;
    State state = State::ended;
    Place place;
    void* operands = nullptr;
    void (*act)(void* const*) = nullptr;
};

/// Block of threads that is running.
struct Block {
    std::vector<Fiber> fibers;
    unsigned current = 0;
    ucontext_t scheduler;
    void* scheduler_jump_buffer[5];
    void* fake_stack = nullptr;
    const void* stack_bottom = nullptr;
    size_t stack_size = 0;
    const std::function<void()>* kernel = nullptr;
    unsigned char* shared = nullptr;
    size_t shared_bytes = 0;
};

inline Block block;

/// Returns the number of threads of a block.
inline unsigned threads() { return blockDim.x * blockDim.y * blockDim.z; }

// Fibers start by `setcontext`. Later switches are jumps, because `swapcontext` makes a system call for the signal
// mask, which took more than half of the run time. The address sanitizer must be told of each switch. It treats
// `longjmp` of the C library as leaving functions for good, so switches use the compiler's built-in jumps, in functions
// that it does not instrument. These functions must be opaque to callers: if they were inlined, the compiler would
// assume that registers survive the jump, but other fibers change them.
#if defined(__clang__)
#define OPAQUE gnu::noinline
#else
#define OPAQUE gnu::noipa
#endif
#if defined(__SANITIZE_ADDRESS__)
#define SWITCHES [[OPAQUE, gnu::no_sanitize_address]]
inline void leave(void** fake_stack, const void* to, size_t size) {
    __sanitizer_start_switch_fiber(fake_stack, to, size);
}
inline void arrive(void* fake_stack, const void** from, size_t* size) {
    __sanitizer_finish_switch_fiber(fake_stack, from, size);
}
#else
#define SWITCHES [[OPAQUE]]
inline void leave(void**, const void*, size_t) {}
inline void arrive(void*, const void**, size_t*) {}
#endif

// A separate function: in a function that also calls `__builtin_setjmp`, the compiler would assume that no jump leads
// back to that call.
SWITCHES inline void jump_to(void** buffer) { __builtin_longjmp(buffer, 1); }

SWITCHES inline void to_scheduler(bool ended) {
    Fiber& fiber = block.fibers[block.current];
    leave(ended ? nullptr : &fiber.fake_stack, block.stack_bottom, block.stack_size);
    if (__builtin_setjmp(fiber.jump_buffer) == 0) jump_to(block.scheduler_jump_buffer);
    arrive(block.fibers[block.current].fake_stack, &block.stack_bottom, &block.stack_size);
}

inline void fiber_main() {
    arrive(nullptr, &block.stack_bottom, &block.stack_size);
    (*block.kernel)();
    block.fibers[block.current].state = State::ended;
    to_scheduler(true);
}

[[gnu::noinline]] inline void begin(Fiber& fiber) {
    getcontext(&fiber.context);
    fiber.context.uc_stack = {fiber.stack.get(), 0, Fiber::STACK};
    makecontext(&fiber.context, fiber_main, 0);
    fiber.state = State::ready;
    fiber.started = false;
}

/// Runs a thread until it waits or ends.
SWITCHES inline void resume(unsigned thread) {
    Fiber& fiber = block.fibers[thread];
    block.current = thread;
    threadIdx = {thread % blockDim.x, thread / blockDim.x % blockDim.y, thread / blockDim.x / blockDim.y};
    leave(&block.fake_stack, fiber.stack.get(), Fiber::STACK);
    if (__builtin_setjmp(block.scheduler_jump_buffer) == 0) {
        if (fiber.started) jump_to(fiber.jump_buffer);
        fiber.started = true;
        setcontext(&fiber.context);
    }
    arrive(block.fake_stack, nullptr, nullptr);
}

inline void wait(State state, Place place) {
    block.fibers[block.current].state = state;
    block.fibers[block.current].place = place;
    to_scheduler(false);
}

/// Executes a warp instruction. Each lane passes its operands; when all 32 have arrived, `act` processes them.
template <class T> void whole_warp(T& operands, void (*act)(T* const* lanes), Place place) {
    Fiber& fiber = block.fibers[block.current];
    fiber.operands = &operands;
    fiber.act = reinterpret_cast<void (*)(void* const*)>(act);
    wait(State::at_warp, place);
}

inline bool same_place(const Fiber& a, const Fiber& b) {
    return a.place.line() == b.place.line() && a.place.column() == b.place.column() &&
           !strcmp(a.place.file_name(), b.place.file_name());
}

/// Returns whether all `count` threads from `first` on wait in the same place. Fails if some wait for threads that
/// cannot arrive.
inline bool all_wait(unsigned first, unsigned count, State state) {
    const Fiber* waiting = nullptr;
    unsigned arrived = 0;
    for (unsigned i = first; i < first + count; ++i) {
        const Fiber& fiber = block.fibers[i];
        if (fiber.state != state) continue;
        if (waiting && !same_place(fiber, *waiting)) {
            threadIdx = {i, 0, 0};
            fail("threads wait in different places", fiber.place);
        }
        waiting = &fiber;
        ++arrived;
    }
    if (waiting && arrived < count) fail("waits for threads that cannot arrive", waiting->place);
    return waiting;
}

/// Runs the lanes of a warp in the given order until all have ended or wait at a barrier of the block. The last warp of a
/// block may lack lanes.
inline void run_warp(unsigned first, std::vector<unsigned>& lanes, const std::function<void()>& reorder) {
    const unsigned count = std::min(32u, threads() - first);
    do {
        reorder();
        for (unsigned lane : lanes) {
            if (lane < count && block.fibers[first + lane].state == State::ready) resume(first + lane);
        }
        if (!all_wait(first, count, State::at_warp)) return;
        if (count < 32) fail("a warp instruction in a warp of fewer than 32 threads", block.fibers[first].place);
        void* operands[32];
        for (unsigned i = 0; i < 32; ++i) {
            operands[i] = block.fibers[first + i].operands;
            block.fibers[first + i].state = State::ready;
        }
        block.fibers[first].act(operands);
    } while (true);
}

inline void run_block(Order order, std::mt19937& random) {
    const unsigned threads = emulation::threads();
    for (unsigned i = 0; i < threads; ++i) begin(block.fibers[i]);
    std::vector<unsigned> lanes(32), warps((threads + 31) / 32);
    std::iota(lanes.begin(), lanes.end(), 0);
    std::iota(warps.begin(), warps.end(), 0);
    if (order == Order::backward) {
        std::reverse(lanes.begin(), lanes.end());
        std::reverse(warps.begin(), warps.end());
    }
    const auto reorder = [&] {
        if (order == Order::shuffled) std::shuffle(lanes.begin(), lanes.end(), random);
    };
    do {
        if (order == Order::shuffled) std::shuffle(warps.begin(), warps.end(), random);
        for (unsigned warp : warps) run_warp(warp * 32, lanes, reorder);
        if (!all_wait(0, threads, State::at_barrier)) return;
        for (unsigned i = 0; i < threads; ++i) block.fibers[i].state = State::ready;
    } while (true);
}

/// Runs `kernel` on every block of the grid.
inline void launch(dim3 grid, dim3 threads, size_t shared_bytes, Order order, const std::function<void()>& kernel) {
    constexpr size_t GUARD = 4096;
    constexpr unsigned char FILL = 0xff; // NaN in every type
    gridDim = grid;
    blockDim = threads;
    const unsigned count = emulation::threads();
    if (count == 0 || count > 1024) fail("a block must have 1 to 1024 threads", Place::current());
    block.kernel = &kernel;
    if (block.fibers.size() < count) block.fibers = std::vector<Fiber>(count);

    void* memory = nullptr;
    if (posix_memalign(&memory, 128, shared_bytes + GUARD)) fail("no memory", Place::current());
    block.shared = static_cast<unsigned char*>(memory);
    block.shared_bytes = shared_bytes;

    std::mt19937 random(7);
    std::vector<unsigned> blocks(grid.x * grid.y * grid.z);
    std::iota(blocks.begin(), blocks.end(), 0);
    if (order == Order::backward) std::reverse(blocks.begin(), blocks.end());
    if (order == Order::shuffled) std::shuffle(blocks.begin(), blocks.end(), random);
    for (unsigned index : blocks) {
        blockIdx = {index % grid.x, index / grid.x % grid.y, index / grid.x / grid.y};
        memset(memory, FILL, shared_bytes + GUARD);
#if defined(__SANITIZE_ADDRESS__)
        ASAN_POISON_MEMORY_REGION(block.shared + shared_bytes, GUARD);
#endif
        run_block(order, random);
#if defined(__SANITIZE_ADDRESS__)
        ASAN_UNPOISON_MEMORY_REGION(block.shared + shared_bytes, GUARD);
#endif
        for (size_t i = shared_bytes; i < shared_bytes + GUARD; ++i) {
            if (block.shared[i] != FILL) fail("a write beyond shared memory", Place::current());
        }
    }
    free(memory);
}

} // namespace emulation

inline unsigned char* dynamic_shared() { return emulation::block.shared; }

inline void __syncthreads(emulation::Place place = emulation::Place::current()) {
    emulation::wait(emulation::State::at_barrier, place);
}

inline void __syncwarp(emulation::Place place = emulation::Place::current()) {
    int nothing = 0;
    emulation::whole_warp<int>(nothing, [](int* const*) {}, place);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T x, int apart, int width = 32, emulation::Place place = emulation::Place::current()) {
    if (mask != 0xffffffffu || width != 32) emulation::fail("only shuffles of whole warps are emulated", place);
    struct Operands {
        T value;
        int apart;
        T result;
    } mine = {x, apart, x};
    emulation::whole_warp<Operands>(
        mine,
        [](Operands* const* lanes) {
            for (int l = 0; l < 32; ++l) lanes[l]->result = lanes[l ^ lanes[l]->apart]->value;
        },
        place);
    return mine.result;
}

/// Returns half `half` (0 is the low half) of a register that contains two bf16.
inline float bf16_half(unsigned pair, int half) {
    return __bfloat162float({static_cast<uint16_t>(pair >> 16 * half)});
}

/// Computes `c += a b` with `a` of 16 x K and `b` of K x 8; the fragments are described in tensor_core.cuh.
template <int K> void multiply(float* const (&c)[32], const float (&a)[16][K], const float (&b)[K][8]) {
    for (int l = 0; l < 32; ++l) {
        for (int i = 0; i < 4; ++i) {
            const int row = l / 4 + i / 2 * 8, column = l % 4 * 2 + i % 2;
            for (int k = 0; k < K; ++k) c[l][i] += a[row][k] * b[k][column];
        }
    }
}

inline void mma_bf16(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1,
                     emulation::Place place = emulation::Place::current()) {
    struct Operands {
        float* c;
        unsigned a[4], b[2];
    } mine = {c, {a[0], a[1], a[2], a[3]}, {b0, b1}};
    emulation::whole_warp<Operands>(
        mine,
        [](Operands* const* lanes) {
            float* c[32];
            float a[16][16], b[16][8];
            for (int l = 0; l < 32; ++l) {
                const int g = l / 4, t = l % 4;
                c[l] = lanes[l]->c;
                for (int half = 0; half < 2; ++half) {
                    for (int r = 0; r < 4; ++r) {
                        a[g + r % 2 * 8][2 * t + half + r / 2 * 8] = bf16_half(lanes[l]->a[r], half);
                    }
                    for (int r = 0; r < 2; ++r) b[2 * t + half + r * 8][g] = bf16_half(lanes[l]->b[r], half);
                }
            }
            multiply<16>(c, a, b);
        },
        place);
}

/// Truncates to TF32, as tensor cores do. A value that was not rounded before gets a larger error.
inline float truncate_to_tf32(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits &= 0xffffe000u;
    memcpy(&x, &bits, sizeof bits);
    return x;
}

inline float to_tf32(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (isfinite(x)) bits += 0x1000u;
    memcpy(&x, &bits, sizeof bits);
    return truncate_to_tf32(x);
}

inline void mma_tf32(float (&c)[4], const float (&a)[4], float b0, float b1,
                     emulation::Place place = emulation::Place::current()) {
    struct Operands {
        float* c;
        float a[4], b[2];
    } mine = {c, {a[0], a[1], a[2], a[3]}, {b0, b1}};
    emulation::whole_warp<Operands>(
        mine,
        [](Operands* const* lanes) {
            float* c[32];
            float a[16][8], b[8][8];
            for (int l = 0; l < 32; ++l) {
                const int g = l / 4, t = l % 4;
                c[l] = lanes[l]->c;
                for (int r = 0; r < 4; ++r) a[g + r % 2 * 8][t + r / 2 * 4] = truncate_to_tf32(lanes[l]->a[r]);
                for (int r = 0; r < 2; ++r) b[t + r * 4][g] = truncate_to_tf32(lanes[l]->b[r]);
            }
            multiply<8>(c, a, b);
        },
        place);
}

inline void load_matrices_either(unsigned (&m)[4], const __nv_bfloat16* row, bool transposed, emulation::Place place) {
    const unsigned char* at = reinterpret_cast<const unsigned char*>(row);
    const emulation::Block& block = emulation::block;
    if (at < block.shared || at + 16 > block.shared + block.shared_bytes) {
        emulation::fail("load_matrices: a row outside shared memory", place);
    }
    if (reinterpret_cast<uintptr_t>(at) % 16 != 0) {
        emulation::fail("load_matrices: a row that is not aligned to 16 bytes", place);
    }
    struct Operands {
        unsigned* m;
        const __nv_bfloat16* row;
        bool transposed;
    } mine = {m, row, transposed};
    emulation::whole_warp<Operands>(
        mine,
        [](Operands* const* lanes) {
            for (int l = 0; l < 32; ++l) {
                const int g = l / 4, t = l % 4;
                for (int matrix = 0; matrix < 4; ++matrix) {
                    const auto element = [&](int row, int column) -> unsigned {
                        return lanes[8 * matrix + row]->row[column].bits;
                    };
                    lanes[l]->m[matrix] = lanes[l]->transposed ? element(2 * t, g) | element(2 * t + 1, g) << 16
                                                               : element(g, 2 * t) | element(g, 2 * t + 1) << 16;
                }
            }
        },
        place);
}

inline void load_matrices(unsigned (&m)[4], const __nv_bfloat16* row,
                          emulation::Place place = emulation::Place::current()) {
    load_matrices_either(m, row, false, place);
}

inline void load_transposed(unsigned (&m)[4], const __nv_bfloat16* row,
                            emulation::Place place = emulation::Place::current()) {
    load_matrices_either(m, row, true, place);
}
