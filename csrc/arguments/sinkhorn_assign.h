// What the kernels of sinkhorn_assign are given.
#pragma once

#include "arguments/kernel.h"

namespace mpamatch {

struct SinkhornAssignArguments {  // all of it, for the pixels of one process
    Pixels embedding;
    const void* prototypes;
    int64_t classes, per_class;
    Indices label;
    double epsilon;
    int64_t iterations;
    bool shifted;         // as below
    int32_t* assignment;  // (N,)
};
MPAMATCH_KERNEL(SinkhornAssignArguments)

// The same by passes, where ranks share the sums of each.

struct SinkhornScoreArguments {
    Pixels embedding;
    const void* prototypes;
    int64_t classes, per_class;
    Indices label;
    double epsilon;
    bool shifted;   // reduce Σ exp(score − 1/ε) over the pixels of a class, else their maximum
    void* score;    // (N, K)
    void* reduced;  // (C, K)
};
MPAMATCH_KERNEL(SinkhornScoreArguments)

struct SinkhornStepArguments {
    const void* score;
    Element element;
    int64_t count, classes, per_class;
    Indices label;
    const void* log_u;  // (C, K)
    const void* total;  // (C, K)
    bool rows;          // Σ softmax over k, else Σ exp
    void* new_log_u;
    void* new_total;
};
MPAMATCH_KERNEL(SinkhornStepArguments)

struct SinkhornPickArguments {
    const void* score;
    Element element;
    int64_t count, classes, per_class;
    Indices label;
    const void* log_u;
    const void* total;
    int32_t* assignment;  // (N,)
};
MPAMATCH_KERNEL(SinkhornPickArguments)

}  // namespace mpamatch
