// What the plans of launchers know of a device, so that tests make plans for devices that are not there.
#pragma once

#include <cstdint>

namespace mpamatch::cuda {

// So many prototypes at most fit into the shared memory of every device from compute capability 8.0 on:
// mpamatch/ops/checks.py says the same.
constexpr int most_prototypes = 3072;

struct Device {
    int processors;
    std::int64_t shared_per_processor;  // bytes
    std::int64_t shared_per_block;      // bytes, with opt-in
    bool cooperative = true;            // launches a grid whose blocks may wait for one another

    // Whether `blocks` of a kernel that takes so much shared memory run on a processor at once. 1 KB of each block is
    // the system's.
    bool holds(std::int64_t bytes, int blocks) const {
        return bytes <= shared_per_block && blocks * (bytes + 1024) <= shared_per_processor;
    }
};

}  // namespace mpamatch::cuda
