// What the kernels of signed_distance are given.
#pragma once

#include "arguments/kernel.h"

namespace mpamatch {

struct SignedDistanceArguments {
    Indices label;  // (B, H, W)
    int64_t batch, classes, height, width;
    float* distance;  // (B, C, H, W)
};
MPAMATCH_KERNEL(SignedDistanceArguments)

}  // namespace mpamatch
