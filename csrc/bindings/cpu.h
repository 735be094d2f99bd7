// The device of the library _C.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

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
