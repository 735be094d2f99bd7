// What the kernels of segmentation_loss are given.
#pragma once

#include "arguments/kernel.h"

namespace mpamatch {

struct SegmentationLossArguments {
    Logits logits;
    Indices label;        // (B, H, W)
    const void* weight;   // (B, H, W)
    void* cross_entropy;  // ()
    void* overlap;        // (3, C)
};
MPAMATCH_KERNEL(SegmentationLossArguments)

struct SegmentationLossBackwardArguments {
    const void* grad_cross_entropy;  // ()
    const void* grad_overlap;        // (3, C)
    Logits logits;
    Indices label;
    const void* weight;
    void* grad_logits;  // in the logits' storage
};
MPAMATCH_KERNEL(SegmentationLossBackwardArguments)

}  // namespace mpamatch
