// What the kernels of prototype_contrast are given.
#pragma once

#include "arguments/kernel.h"

namespace mpamatch {

struct PrototypeContrastArguments {
    Pixels embedding;
    const void* prototypes;
    int64_t classes, per_class;
    Indices assignment;
    const void* weight;
    double temperature;
    bool same_class_negatives;
    void* contrast;   // ()
    void* alignment;  // ()
    void* lse;        // (N,), 0 for a pixel that does not count
};
MPAMATCH_KERNEL(PrototypeContrastArguments)

struct PrototypeContrastBackwardArguments {
    const void* grad_contrast;   // ()
    const void* grad_alignment;  // ()
    Pixels embedding;
    const void* prototypes;
    int64_t classes, per_class;
    Indices assignment;
    const void* weight;
    const void* lse;
    double temperature;
    bool same_class_negatives;
    void* grad_embedding;   // or null
    void* grad_prototypes;  // or null
};
MPAMATCH_KERNEL(PrototypeContrastBackwardArguments)

}  // namespace mpamatch
