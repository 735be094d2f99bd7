// Helpers of the launchers.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "cuda/device.h"
#include "cuda/place.h"
#include "cuda/primitives.h"

namespace mpamatch::cuda {

constexpr std::int64_t int_limit = std::int64_t{1} << 31;

// The limits of a kernel, said as the bindings say theirs.
inline void require(bool holds, const char* sentence) {
    if (!holds) throw std::runtime_error(sentence);
}

// The kernels on an embedding count its columns, and the elements from row to row, in 32 bits.
inline void check_limits(const Pixels& pixels) {
    require(pixels.width < int_limit, "embedding: expected fewer than 2^31 columns.");
    require(pixels.stride < int64_t{1} << 24, "embedding: expected rows less than 2^24 elements apart.");
}

inline void check(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // else torch's next check would report it again, elsewhere
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

inline int attribute(cudaDeviceAttr name, const Place& place) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, name, place.device), "cudaDeviceGetAttribute");
    return value;
}

inline int processors(const Place& place) { return attribute(cudaDevAttrMultiProcessorCount, place); }

// Enough blocks for `work` pieces, no more than the device holds at once.
template <class Kernel>
int blocks_for(std::int64_t work, const Place& place) {
    const std::int64_t resident = std::int64_t(Kernel::blocks_per_processor) * processors(place);
    const std::int64_t blocks = work < resident ? work : resident;
    return blocks < 1 ? 1 : static_cast<int>(blocks);
}

inline Device device_of(const Place& place) {
    return {processors(place), attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, place),
            attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, place),
            attribute(cudaDevAttrCooperativeLaunch, place) != 0};
}

// Beyond 48 KB a kernel has to ask.
template <class Kernel>
void allow_shared_bytes(std::int64_t bytes, const char* name) {
    if (bytes <= (48 << 10)) return;
    check(cudaFuncSetAttribute(entry<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
          name);
}

template <class Kernel>
void launch(const Kernel& kernel, std::int64_t blocks, const char* name, const Place& place) {
    const std::int64_t bytes = kernel.shared_bytes(Kernel::threads);
    const int most = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, place);
    if (bytes > most) {
        throw std::runtime_error("prototypes: too many for the shared memory of this device, " + std::string(name) +
                                 " needs " + std::to_string(bytes) + " bytes of " + std::to_string(most) + ".");
    }
    allow_shared_bytes<Kernel>(bytes, name);
    entry<Kernel><<<static_cast<unsigned>(blocks), Kernel::threads, static_cast<std::size_t>(bytes),
                    static_cast<cudaStream_t>(place.stream)>>>(kernel);
    check(cudaGetLastError(), name);
}

// Whether all blocks of a grid run at once, so that they may wait for one another. Asks the driver, not the device.
template <class Kernel>
bool runs_at_once(const Kernel& kernel, int blocks, const char* name, const Place& place) {
    const std::int64_t bytes = kernel.shared_bytes(Kernel::threads);
    allow_shared_bytes<Kernel>(bytes, name);
    int each = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, entry<Kernel>, Kernel::threads,
                                                        static_cast<std::size_t>(bytes)),
          name);
    return std::int64_t(each) * processors(place) >= blocks;
}

// A launch that CUDA refuses unless all its blocks run at once.
template <class Kernel>
void launch_at_once(const Kernel& kernel, int blocks, const char* name, const Place& place) {
    void* arguments[] = {const_cast<Kernel*>(&kernel)};
    check(cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(entry<Kernel>), dim3(static_cast<unsigned>(blocks)),
                                      dim3(Kernel::threads), arguments,
                                      static_cast<std::size_t>(kernel.shared_bytes(Kernel::threads)),
                                      static_cast<cudaStream_t>(place.stream)),
          name);
}

// Whether every row can be read in packs of `vector` elements.
template <class Storage, int vector>
bool rows_are_aligned(const Pixels& pixels) {
    return reinterpret_cast<std::uintptr_t>(pixels.data) % sizeof(Pack<Storage, vector>) == 0 &&
           pixels.width % vector == 0 && pixels.stride % vector == 0;
}

// Calls `use` with a value of the storage type.
template <class Use>
void with_storage(Element element, const Use& use) {
    switch (element) {
        case Element::f32: return use(float{});
        case Element::f16: return use(Float16{});
        case Element::bf16: return use(BFloat16{});
        case Element::f64: return use(double{});
    }
}

// Calls `use` with a value of the type that the storage is computed in.
template <class Use>
void with_working(Element element, const Use& use) {
    if (element == Element::f64) {
        use(double{});
    } else {
        use(float{});
    }
}

}  // namespace mpamatch::cuda
