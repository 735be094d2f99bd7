// The device of the library _cuda: only a CUDA build of torch has a current stream to ask for.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <vector>

#include "arguments/kernel.h"
#include "cuda/place.h"

#define MPAMATCH_DISPATCH_KEY CUDA
// The schemas are those of _C: here nobody calls this function.
#define MPAMATCH_SCHEMAS(library) \
    [[maybe_unused]] static void C10_CONCATENATE(schemas_, C10_UID)(torch::stable::detail::StableLibrary & library)

namespace mpamatch {

// The device and current stream of a tensor, and workspaces that are freed when this is: the caching allocator hands
// them on to later work of the same stream only.
class Device {
  public:
    static constexpr const char* place = "the CUDA device of the others";

    Device(const torch::stable::Tensor& first, const char* name) : first_(first), guard_(index_of(first, name)) {
        place_.device = first.get_device_index();
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(place_.device, &place_.stream));
        place_.allocate = [this](int64_t bytes) {
            const torch::headeronly::IntHeaderOnlyArrayRef shape(&bytes, 1);
            workspaces_.push_back(torch::stable::new_empty(first_, shape, torch::headeronly::ScalarType::Byte));
            return static_cast<unsigned char*>(workspaces_.back().mutable_data_ptr());
        };
    }
    Device(const Device&) = delete;
    Device& operator=(const Device&) = delete;

    bool holds(const torch::stable::Tensor& tensor) const {
        return tensor.is_cuda() && tensor.get_device_index() == place_.device;
    }

    void will_fill(void*, int64_t) const {}  // a matter of the CPU's pages

    template <class Arguments>
    void run(const Arguments& arguments) const {
        run_kernel(arguments, place_);
    }

  private:
    static int32_t index_of(const torch::stable::Tensor& first, const char* name) {
        STD_TORCH_CHECK(first.is_cuda(), name, ": expected a tensor on a CUDA device.");
        return first.get_device_index();
    }

    torch::stable::Tensor first_;
    torch::stable::accelerator::DeviceGuard guard_;
    cuda::Place place_;
    std::vector<torch::stable::Tensor> workspaces_;
};

}  // namespace mpamatch
