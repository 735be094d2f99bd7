// What the kernels of prototype_distance are given.
#pragma once

#include "arguments/kernel.h"

namespace mpamatch {

struct PrototypeDistanceArguments {
    Pixels embedding;
    const void* prototypes;  // (C, K, D)
    int64_t classes, per_class;
    void* distance;    // (N, C)
    int32_t* nearest;  // (N, C)
};
MPAMATCH_KERNEL(PrototypeDistanceArguments)

struct PrototypeDistanceBackwardArguments {
    const void* grad_distance;  // (N, C)
    Pixels embedding;
    const void* prototypes;
    int64_t classes, per_class;
    const void* distance;
    const int32_t* nearest;
    void* grad_embedding;   // (N, D) in the embedding's storage, or null
    void* grad_prototypes;  // (C, K, D), or null
};
MPAMATCH_KERNEL(PrototypeDistanceBackwardArguments)

}  // namespace mpamatch
