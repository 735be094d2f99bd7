// What the kernels of prototype_update_ are given.
#pragma once

#include "arguments/kernel.h"

namespace mpamatch {

struct PrototypeSumArguments {
    Pixels embedding;
    Indices assignment;
    const void* weight;
    int64_t prototypes;
    void* total;  // (M, D)
};
MPAMATCH_KERNEL(PrototypeSumArguments)

struct PrototypeMoveArguments {
    void* prototypes;  // (M, D)
    int64_t* updates;  // (M,)
    Element element;
    int64_t count, width;
    const void* total;  // (M, D)
    double momentum;
};
MPAMATCH_KERNEL(PrototypeMoveArguments)

}  // namespace mpamatch
