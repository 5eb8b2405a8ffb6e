// Interface between the parts of the emulated GPU: queued work of streams, and kernels by name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <tuple>
#include <utility>

namespace card {

using Work = std::function<void()>;

/// Appends work to a stream (a `CUstream`). The work runs only when a caller waits for the stream.
void enqueue(void* stream, const std::string& what, Work work);

/// Kernel that can be launched. `bind` copies the arguments and returns the work of one thread.
struct Kernel {
    std::function<Work(void** arguments)> bind;
    /// True if threads may wait for each other. Other kernels run their threads one after another.
    bool has_barriers = false;
    /// Maximum number of bytes of dynamic shared memory of a launch.
    unsigned shared_limit = 49152;
};

/// Registers a kernel under its name in the PTX.
void add(const char* name, Kernel kernel);

template <class... A> struct Register {
    Register(const char* name, void (*kernel)(A...), bool has_barriers) {
        const auto indices = std::index_sequence_for<A...>();
        add(name, {[=](void** arguments) { return bind(kernel, arguments, indices); }, has_barriers});
    }

  private:
    template <size_t... I> static Work bind(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
        std::tuple<A...> values(*static_cast<std::remove_const_t<A>*>(arguments[I])...);
        return [kernel, values] { std::apply(kernel, values); };
    }
};

/// Ends the program unless `bytes` from `pointer` lie within one allocation.
void inside(uint64_t pointer, size_t bytes, const char* what);

/// Ends the program with a message, where a GPU would crash or report nothing.
[[noreturn]] void fail(const std::string& what);

} // namespace card
