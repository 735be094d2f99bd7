// What the bindings, which know torch, tell the launchers, which know CUDA: neither includes the other's headers. A
// launcher, run_kernel(arguments, place) in <operation>.cu, queues its work on a stream and returns; it throws
// std::runtime_error if the arguments are beyond its limits or CUDA refuses.
#pragma once

#include <cstdint>
#include <functional>

namespace mpamatch::cuda {

// Where to run, and how to get memory that lives until the work queued so far is done.
struct Place {
    int device;
    void* stream;
    std::function<unsigned char*(std::int64_t bytes)> allocate;
};

}  // namespace mpamatch::cuda
