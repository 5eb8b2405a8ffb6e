// Emulated GPU: the part of CUDA's driver that candle and this repository use, on the CPU, with the kernels compiled by
// a C++ compiler. It behaves as strictly as the specification allows:
//
//   - memory begins as NaN, lies between guards, and is NaN again once freed
//   - work of a stream runs only when a caller waits for that stream, so that code that forgets to wait for another
//     stream, or reuses pinned memory too early, gets wrong values
//   - errors of the driver are reported: calls of a thread without a context, grids and blocks beyond the limits,
//     shared memory beyond the requested size
//
// `CARD_ORDER` is the order of threads and blocks: forward, backward or shuffled. `CARD_LAUNCHES` names a file for the
// counts of kernels, copies and products, written when the program ends. `CARD_TRACE` names a file for the
// name of each of these operations, in the order of submission.

#include <chrono>
#include <deque>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <set>

#include "../cuda_on_cpu.h"
#include "card.h"

namespace {

/// CUresult.
enum Status {
    success = 0,
    invalid_value = 1,
    out_of_memory = 2,
    invalid_device = 101,
    invalid_context = 201,
    not_found = 500,
    launch_out_of_resources = 701,
};

constexpr size_t GUARD = 256;
constexpr unsigned char FILL = 0xff; // NaN in every type
/// Bytes of freed memory that are kept to detect writes into them.
constexpr size_t FREED_KEPT = 256 << 20;
/// Maximum number of waiting operations of a stream. No step of a test has more.
constexpr size_t MAX_WAITING = 1 << 20;

struct Allocation {
    size_t bytes;
};

struct Freed {
    unsigned char* memory;
    size_t bytes;
};

struct Queue : std::enable_shared_from_this<Queue> {
    std::deque<card::Work> work;
    /// Number of operations submitted, and number started.
    size_t queued = 0, begun = 0;
};

/// State of the emulated GPU, under one lock: the emulation runs one block at a time.
struct Card {
    std::recursive_mutex lock;
    std::map<uintptr_t, Allocation> memory;
    std::deque<Freed> freed;
    size_t freed_bytes = 0, used = 0, highest = 0;
    std::map<uintptr_t, size_t> pinned;
    std::map<std::string, card::Kernel> kernels;
    std::map<std::string, size_t> requests;
    std::ofstream trace{getenv("CARD_TRACE") ? getenv("CARD_TRACE") : ""};
    std::set<std::shared_ptr<Queue>> queues;
};

Card& card_() {
    // Never destroyed, because threads may end after the destruction of static objects.
    static Card* card = new Card;
    return *card;
}

struct Locked {
    std::lock_guard<std::recursive_mutex> guard{card_().lock};
};

thread_local void* current_context = nullptr;
int the_context;
uint64_t release_threshold = 0;

Queue* new_queue() {
    return card_().queues.insert(std::make_shared<Queue>()).first->get();
}

/// Returns the stream of a handle: 0 and 1 are the default stream, 2 is the calling thread's own default stream.
Queue& queue_of(void* stream) {
    static Queue* legacy = new_queue();
    static thread_local Queue* own = nullptr;
    switch (reinterpret_cast<uintptr_t>(stream)) {
    case 0:
    case 1: return *legacy;
    case 2:
        if (!own) own = new_queue();
        return *own;
    default: return *static_cast<Queue*>(stream);
    }
}

/// Runs the first `until` operations of a stream. Later operations do not run, so that code that waits for too little
/// gets wrong values.
void finish(Queue& queue, size_t until = SIZE_MAX) {
    while (!queue.work.empty() && queue.begun < until) {
        card::Work work = std::move(queue.work.front());
        queue.work.pop_front();
        ++queue.begun;
        work();
    }
}

void finish_all() {
    for (const auto& queue : card_().queues) finish(*queue);
}

emulation::Order order() {
    static const emulation::Order chosen = [] {
        const char* name = getenv("CARD_ORDER");
        if (!name || !strcmp(name, "forward")) return emulation::Order::forward;
        if (!strcmp(name, "backward")) return emulation::Order::backward;
        if (!strcmp(name, "shuffled")) return emulation::Order::shuffled;
        card::fail(std::string("CARD_ORDER = ") + name + ": expected forward, backward or shuffled");
    }();
    return chosen;
}

unsigned char* address(uint64_t pointer) { return reinterpret_cast<unsigned char*>(pointer); }

Status allocate(uint64_t* pointer, size_t bytes) {
    if (bytes == 0) return invalid_value;
    Card& card = card_();
    unsigned char* memory = static_cast<unsigned char*>(aligned_alloc(256, (bytes + 2 * GUARD + 255) / 256 * 256));
    if (!memory) return out_of_memory;
    memset(memory, FILL, bytes + 2 * GUARD);
    *pointer = reinterpret_cast<uint64_t>(memory + GUARD);
    card.memory[*pointer] = {bytes};
    card.used += bytes;
    card.highest = std::max(card.highest, card.used);
    return success;
}

void untouched(const unsigned char* from, size_t bytes, const char* what) {
    for (size_t i = 0; i < bytes; ++i) {
        if (from[i] != FILL) card::fail(what);
    }
}

void guards_untouched(uint64_t pointer, size_t bytes) {
    untouched(address(pointer) - GUARD, GUARD, "a write before the beginning of an allocation");
    untouched(address(pointer) + bytes, GUARD, "a write beyond the end of an allocation");
}

void untouched(const Freed& freed) { untouched(freed.memory, freed.bytes, "a write into memory that was freed"); }

void release(uint64_t pointer) {
    Card& card = card_();
    const auto found = card.memory.find(pointer);
    if (found == card.memory.end()) card::fail("memory that was freed twice or never allocated");
    const size_t bytes = found->second.bytes;
    unsigned char* memory = address(pointer) - GUARD;
    guards_untouched(pointer, bytes);
    card.memory.erase(found);
    card.used -= bytes;
    memset(memory, FILL, bytes + 2 * GUARD);
    card.freed.push_back({memory, bytes + 2 * GUARD});
    card.freed_bytes += bytes + 2 * GUARD;
    while (card.freed_bytes > FREED_KEPT) {
        const Freed oldest = card.freed.front();
        card.freed.pop_front();
        card.freed_bytes -= oldest.bytes;
        untouched(oldest);
        free(oldest.memory);
    }
}

bool is_pinned(const void* host, size_t bytes) {
    const uintptr_t from = reinterpret_cast<uintptr_t>(host);
    auto next = card_().pinned.upper_bound(from);
    return next != card_().pinned.begin() && from + bytes <= std::prev(next)->first + std::prev(next)->second;
}

/// Returns all indices of a grid or a block, in the order in which they run.
std::vector<dim3> in_order(dim3 size) {
    static std::mt19937 random(7);
    std::vector<dim3> all;
    for (unsigned z = 0; z < size.z; ++z)
        for (unsigned y = 0; y < size.y; ++y)
            for (unsigned x = 0; x < size.x; ++x) all.push_back({x, y, z});
    if (order() == emulation::Order::backward) std::reverse(all.begin(), all.end());
    if (order() == emulation::Order::shuffled) std::shuffle(all.begin(), all.end(), random);
    return all;
}

void run(const card::Kernel& kernel, dim3 grid, dim3 threads, unsigned shared, const card::Work& thread) {
    if (kernel.has_barriers) {
        emulation::launch(grid, threads, shared, order(), thread);
        return;
    }
    gridDim = grid;
    blockDim = threads;
    const std::vector<dim3> places = in_order(threads);
    for (const dim3& block : in_order(grid)) {
        blockIdx = block;
        for (const dim3& place : places) {
            threadIdx = place;
            thread();
        }
    }
}

} // namespace

namespace card {

void fail(const std::string& what) {
    fprintf(stderr, "emulated GPU: %s\n", what.c_str());
    fflush(nullptr);
    _Exit(1);
}

void add(const char* name, Kernel kernel) {
    Locked locked;
    if (!card_().kernels.emplace(name, std::move(kernel)).second) fail(std::string("two kernels named ") + name);
}

void enqueue(void* stream, const std::string& what, Work work) {
    Locked locked;
    if (!what.empty()) {
        ++card_().requests[what];
        if (card_().trace.is_open()) card_().trace << what << std::endl;
    }
    Queue& queue = queue_of(stream);
    queue.work.push_back(std::move(work));
    ++queue.queued;
    if (queue.work.size() > MAX_WAITING) fail("a stream has too many operations for which no caller waits");
}

void inside(uint64_t pointer, size_t bytes, const char* what) {
    if (bytes == 0) return;
    auto& memory = card_().memory;
    auto next = memory.upper_bound(pointer);
    if (next == memory.begin()) fail(std::string(what) + " outside device memory");
    const auto& [start, allocation] = *std::prev(next);
    if (pointer + bytes > start + allocation.bytes) fail(std::string(what) + " beyond the end of an allocation");
}

} // namespace card

using card::inside;

#define NEEDS_CONTEXT                                                                                                  \
    Locked locked;                                                                                                     \
    if (!current_context) return invalid_context

#define API extern "C" __attribute__((visibility("default"))) int

API cuInit(unsigned) { return success; }

API cuDriverGetVersion(int* version) {
    *version = 13000;
    return success;
}

API cuGetErrorName(int status, const char** name) {
    static const std::map<int, const char*> names = {
        {success, "CUDA_SUCCESS"},
        {invalid_value, "CUDA_ERROR_INVALID_VALUE"},
        {out_of_memory, "CUDA_ERROR_OUT_OF_MEMORY"},
        {invalid_device, "CUDA_ERROR_INVALID_DEVICE"},
        {invalid_context, "CUDA_ERROR_INVALID_CONTEXT"},
        {not_found, "CUDA_ERROR_NOT_FOUND"},
        {launch_out_of_resources, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"},
    };
    const auto found = names.find(status);
    if (found == names.end()) return invalid_value;
    *name = found->second;
    return success;
}

API cuGetErrorString(int status, const char** text) { return cuGetErrorName(status, text); }

API cuDeviceGetCount(int* count) {
    *count = 1;
    return success;
}

API cuDeviceGet(int* device, int ordinal) {
    *device = ordinal;
    return ordinal == 0 ? success : invalid_device;
}

API cuDeviceGetName(char* name, int room, int) {
    snprintf(name, room, "emulated on the CPU");
    return success;
}

API cuDeviceTotalMem_v2(size_t* bytes, int) {
    *bytes = size_t(8) << 30;
    return success;
}

API cuDeviceGetAttribute(int* value, int attribute, int) {
    switch (attribute) {
    case 16: *value = 4; return success;  // multiprocessors
    case 75: *value = 8; return success;  // compute capability 8.0
    case 76: *value = 0; return success;
    case 115: *value = 1; return success; // memory pools
    default: card::fail("device attribute " + std::to_string(attribute) + " is not emulated");
    }
}

API cuDevicePrimaryCtxRetain(void** context, int device) {
    if (device != 0) return invalid_device;
    *context = &the_context;
    return success;
}

API cuDevicePrimaryCtxRelease_v2(int) { return success; }

API cuCtxSetCurrent(void* context) {
    current_context = context;
    return success;
}

API cuCtxGetCurrent(void** context) {
    *context = current_context;
    return success;
}

API cuCtxSynchronize() {
    NEEDS_CONTEXT;
    finish_all();
    return success;
}

API cuDeviceGetDefaultMemPool(void** pool, int) {
    *pool = &the_context;
    return success;
}

API cuMemPoolSetAttribute(void*, int attribute, void* value) {
    Locked locked;
    switch (attribute) {
    case 4: memcpy(&release_threshold, value, sizeof release_threshold); return success;
    case 8:
        if (*static_cast<uint64_t*>(value) != 0) return invalid_value;
        card_().highest = card_().used;
        return success;
    default: return invalid_value;
    }
}

API cuMemPoolGetAttribute(void*, int attribute, void* value) {
    Locked locked;
    if (attribute != 8) return invalid_value;
    *static_cast<uint64_t*>(value) = card_().highest;
    return success;
}

API cuMemGetInfo_v2(size_t* unused, size_t* all) {
    NEEDS_CONTEXT;
    *all = size_t(8) << 30;
    *unused = *all - card_().used;
    return success;
}

API cuStreamCreate(void** stream, unsigned) {
    NEEDS_CONTEXT;
    *stream = new_queue();
    return success;
}

API cuStreamDestroy_v2(void* stream) {
    NEEDS_CONTEXT;
    const auto queue = static_cast<Queue*>(stream)->shared_from_this();
    finish(*queue);
    card_().queues.erase(queue);
    return success;
}

API cuStreamSynchronize(void* stream) {
    NEEDS_CONTEXT;
    finish(queue_of(stream));
    return success;
}

API cuStreamIsCapturing(void*, int* status) {
    *status = 0;
    return success;
}

/// Position in a stream. A caller that waits for an event waits for all earlier operations of the stream.
struct Event {
    std::shared_ptr<Queue> queue;
    size_t until = 0;
    std::shared_ptr<std::chrono::steady_clock::time_point> when;
};

API cuEventCreate(Event** event, unsigned) {
    NEEDS_CONTEXT;
    *event = new Event;
    return success;
}

API cuEventDestroy_v2(Event* event) {
    delete event;
    return success;
}

API cuEventRecord(Event* event, void* stream) {
    NEEDS_CONTEXT;
    event->queue = queue_of(stream).shared_from_this();
    event->when = std::make_shared<std::chrono::steady_clock::time_point>();
    card::enqueue(stream, "", [when = event->when] { *when = std::chrono::steady_clock::now(); });
    event->until = event->queue->queued;
    return success;
}

API cuEventSynchronize(Event* event) {
    NEEDS_CONTEXT;
    if (event->queue) finish(*event->queue, event->until);
    return success;
}

API cuStreamWaitEvent(void* stream, Event* event, unsigned) {
    NEEDS_CONTEXT;
    if (event->queue) card::enqueue(stream, "", [queue = event->queue, until = event->until] { finish(*queue, until); });
    return success;
}

API cuEventElapsedTime_v2(float* milliseconds, Event* from, Event* to) {
    if (!from->when || !to->when) return invalid_value;
    *milliseconds = std::chrono::duration<float, std::milli>(*to->when - *from->when).count();
    return success;
}

API cuMemAllocAsync(uint64_t* pointer, size_t bytes, void*) {
    NEEDS_CONTEXT;
    return allocate(pointer, bytes);
}

API cuMemAlloc_v2(uint64_t* pointer, size_t bytes) {
    NEEDS_CONTEXT;
    return allocate(pointer, bytes);
}

API cuMemFreeAsync(uint64_t pointer, void* stream) {
    NEEDS_CONTEXT;
    card::enqueue(stream, "", [pointer] { release(pointer); });
    return success;
}

API cuMemFree_v2(uint64_t pointer) {
    NEEDS_CONTEXT;
    finish_all();
    release(pointer);
    return success;
}

API cuMemHostAlloc(void** host, size_t bytes, unsigned) {
    NEEDS_CONTEXT;
    *host = malloc(bytes);
    if (!*host) return out_of_memory;
    card_().pinned[reinterpret_cast<uintptr_t>(*host)] = bytes;
    return success;
}

API cuMemFreeHost(void* host) {
    NEEDS_CONTEXT;
    // Like the driver, waits for all streams.
    finish_all();
    card_().pinned.erase(reinterpret_cast<uintptr_t>(host));
    free(host);
    return success;
}

API cuMemsetD8Async(uint64_t pointer, unsigned char value, size_t bytes, void* stream) {
    NEEDS_CONTEXT;
    card::enqueue(stream, "memset", [=] {
        inside(pointer, bytes, "memset");
        memset(address(pointer), value, bytes);
    });
    return success;
}

API cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
    NEEDS_CONTEXT;
    if (is_pinned(from, bytes)) {
        card::enqueue(stream, "copy to device", [=] {
            inside(to, bytes, "a copy to the device");
            memcpy(address(to), from, bytes);
        });
        return success;
    }
    // When the call returns, the driver has read pageable memory.
    const auto* begin = static_cast<const unsigned char*>(from);
    auto staged = std::make_shared<std::vector<unsigned char>>(begin, begin + bytes);
    card::enqueue(stream, "copy to device, staged", [=] {
        inside(to, bytes, "a copy to the device");
        memcpy(address(to), staged->data(), bytes);
    });
    return success;
}

API cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
    NEEDS_CONTEXT;
    const auto copy = [=] {
        inside(from, bytes, "a copy from the device");
        memcpy(to, address(from), bytes);
    };
    card::enqueue(stream, "copy from device", copy);
    // A copy into pageable memory is complete when the call returns.
    if (!is_pinned(to, bytes)) finish(queue_of(stream));
    return success;
}

API cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* stream) {
    NEEDS_CONTEXT;
    card::enqueue(stream, "copy", [=] {
        inside(from, bytes, "a copy from");
        inside(to, bytes, "a copy to");
        memmove(address(to), address(from), bytes);
    });
    return success;
}

/// Ignores the contents of the module: all kernels are registered when the program starts.
API cuModuleLoadData(void** module, const void*) {
    NEEDS_CONTEXT;
    *module = &the_context;
    return success;
}

API cuModuleUnload(void*) { return success; }

API cuModuleGetFunction(void** function, void*, const char* name) {
    NEEDS_CONTEXT;
    const auto found = card_().kernels.find(name);
    if (found == card_().kernels.end()) card::fail(std::string("no kernel has the name ") + name);
    *function = &*found;
    return success;
}

using Named = std::pair<const std::string, card::Kernel>;

API cuFuncSetAttribute(Named* function, int attribute, int value) {
    NEEDS_CONTEXT;
    // Compute capability 8.0 has 164 KiB of shared memory, of which the system reserves 1 KiB per block.
    if (attribute != 8 || value < 0 || value > 163 << 10) return invalid_value;
    function->second.shared_limit = value;
    return success;
}

API cuLaunchKernel(Named* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void* stream, void** arguments, void** extra) {
    NEEDS_CONTEXT;
    const auto& [name, kernel] = *function;
    const size_t threads = size_t(bx) * by * bz;
    const bool grid = gx > 0 && gy > 0 && gz > 0 && gx <= 0x7fffffffu && gy <= 65535 && gz <= 65535;
    if (!grid || threads == 0 || threads > 1024 || bz > 64 || extra || shared > kernel.shared_limit) {
        fprintf(stderr, "emulated GPU: %s cannot be launched on (%u, %u, %u) blocks of (%u, %u, %u), %u bytes\n",
                name.c_str(), gx, gy, gz, bx, by, bz, shared);
        return invalid_value;
    }
    const card::Kernel* launched = &kernel;
    card::enqueue(stream, name, [=, thread = kernel.bind(arguments)] {
        run(*launched, dim3{gx, gy, gz}, dim3{bx, by, bz}, shared, thread);
    });
    return success;
}

/// Checks all memory when the program ends, and writes the counts of requests.
__attribute__((destructor)) static void finish_card() {
    for (const auto& [pointer, allocation] : card_().memory) guards_untouched(pointer, allocation.bytes);
    for (const Freed& freed : card_().freed) untouched(freed);
    const char* file = getenv("CARD_LAUNCHES");
    if (!file) return;
    std::ofstream out(file, std::ios::app);
    for (const auto& [name, count] : card_().requests) out << name << ' ' << count << '\n';
}
