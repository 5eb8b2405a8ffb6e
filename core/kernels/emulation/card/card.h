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

/// Puts work at the end of a stream (a `CUstream`). It is done when somebody waits for that stream, not before.
void enqueue(void* stream, const std::string& what, Work work);

/// A kernel that can be launched: what it does for one thread, bound to copies of its arguments.
struct Kernel {
    std::function<Work(void** arguments)> bind;
    /// Whether threads may wait for each other. Those that never do are simply called one after the other.
    bool meets = false;
    /// Bytes of dynamic shared memory that a launch may ask for.
    unsigned shared_limit = 49152;
};

/// Registers a kernel under its name in the PTX.
void add(const char* name, Kernel kernel);

template <class... A> struct Register {
    Register(const char* name, void (*kernel)(A...), bool meets) {
        add(name, {[kernel](void** arguments) { return bind(kernel, arguments, std::index_sequence_for<A...>()); }, meets});
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
