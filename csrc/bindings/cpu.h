// The device of the library _C.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "arguments/kernel.h"

#define MPAMATCH_DISPATCH_KEY CPU
#define MPAMATCH_SCHEMAS(library) STABLE_TORCH_LIBRARY_FRAGMENT(mpamatch, library)

namespace mpamatch {

class Device {
  public:
    static constexpr const char* place = "the CPU";

    Device(const torch::stable::Tensor& first, const char* name) {
        STD_TORCH_CHECK(holds(first), name, ": expected a tensor on the CPU.");
    }

    bool holds(const torch::stable::Tensor& tensor) const { return tensor.is_cpu(); }

    // Asks for pages of 2 MB within a large result. Linux clears a page at its first touch: of 64 MB in small pages
    // that is 16,384 faults, which take longer than the gradient that is written there. Where it is refused, nothing
    // changes.
    void will_fill(void* data, int64_t bytes) const {
#if defined(MADV_HUGEPAGE)
        constexpr uintptr_t PAGE = uintptr_t{2} << 20;
        const uintptr_t first = reinterpret_cast<uintptr_t>(data), end = first + static_cast<uintptr_t>(bytes);
        const uintptr_t begin = (first + PAGE - 1) / PAGE * PAGE;
        if (begin + PAGE <= end) madvise(reinterpret_cast<void*>(begin), (end - begin) / PAGE * PAGE, MADV_HUGEPAGE);
#endif
        (void)data, (void)bytes;
    }

    template <class Arguments>
    void run(const Arguments& arguments) const {
        run_kernel(arguments, &run_tasks);
    }

  private:
    static void run_tasks(int64_t tasks, void (*task)(void*, int64_t), void* context) {
        torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) task(context, i);
        });
    }
};

}  // namespace mpamatch
