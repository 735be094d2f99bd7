// What the kernels of pseudo_label are given.
#pragma once

#include "arguments/kernel.h"

namespace mpamatch {

struct PseudoLabelArguments {
    Logits logits;
    uint8_t* label;    // (B, H, W)
    void* confidence;  // (B, H, W)
};
MPAMATCH_KERNEL(PseudoLabelArguments)

}  // namespace mpamatch
