// What the kernels are given: plain pointers and sizes, no torch. N pixels, D width, C classes, K prototypes per class.
#pragma once

#include <cstdint>

namespace mpamatch {

// How a number is stored. All arithmetic is float, or double where the storage is.
enum class Element : int32_t { f32, f64, f16, bf16 };

enum class IndexType : int32_t { u8, i32, i64 };

// Runs task(context, i) for every i in [0, tasks), in any order and on any thread.
using ParallelTasks = void (*)(int64_t tasks, void (*task)(void* context, int64_t index), void* context);

struct Pixels {  // (N, D), rows with unit column stride
    const void* data;
    Element element;
    int64_t count;
    int64_t width;
    int64_t stride;  // elements from row to row
};

struct Indices {  // labels or assignments; what lies outside the allowed range is ignored
    const void* data;
    IndexType type;
};

// Pointers to void are float, or double where the pixels or logits are; a null weight means 1 everywhere.

struct PrototypeDistance {
    Pixels embedding;
    const void* prototypes;  // (C, K, D)
    int64_t classes, per_class;
    void* distance;    // (N, C)
    int32_t* nearest;  // (N, C)
    ParallelTasks parallel;
};

struct PrototypeDistanceBackward {
    const void* grad_distance;  // (N, C)
    Pixels embedding;
    const void* prototypes;
    int64_t classes, per_class;
    const void* distance;
    const int32_t* nearest;
    void* grad_embedding;   // (N, D) in the embedding's storage, or null
    void* grad_prototypes;  // (C, K, D), or null
    ParallelTasks parallel;
};

struct PrototypeContrast {
    Pixels embedding;
    const void* prototypes;
    int64_t classes, per_class;
    Indices assignment;
    const void* weight;
    double temperature;
    bool same_class_negatives;
    void* contrast;   // ()
    void* alignment;  // ()
    void* lse;        // (N,)
    ParallelTasks parallel;
};

struct PrototypeContrastBackward {
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
    ParallelTasks parallel;
};

struct SinkhornScore {
    Pixels embedding;
    const void* prototypes;
    int64_t classes, per_class;
    Indices label;
    double epsilon;
    bool shifted;  // reduce Σ exp(score − 1/ε) over the pixels of a class, else their maximum
    void* score;    // (N, K)
    void* reduced;  // (C, K)
    ParallelTasks parallel;
};

struct SinkhornStep {
    const void* score;
    Element element;
    int64_t count, classes, per_class;
    Indices label;
    const void* log_u;  // (C, K)
    const void* total;  // (C, K)
    bool rows;          // Σ softmax over k, else Σ exp
    void* new_log_u;
    void* new_total;
    ParallelTasks parallel;
};

struct SinkhornPick {
    const void* score;
    Element element;
    int64_t count, classes, per_class;
    Indices label;
    const void* log_u;
    const void* total;
    int32_t* assignment;  // (N,)
    ParallelTasks parallel;
};

struct PrototypeSum {
    Pixels embedding;
    Indices assignment;
    const void* weight;
    int64_t prototypes;
    void* total;  // (M, D)
    ParallelTasks parallel;
};

struct PrototypeMove {
    void* prototypes;  // (M, D)
    int64_t* updates;  // (M,)
    Element element;
    int64_t count, width;
    const void* total;  // (M, D)
    double momentum;
};

struct Logits {  // (B, C, H, W), contiguous
    const void* data;
    Element element;
    int64_t batch, classes, pixels;  // pixels = H·W
};

struct SegmentationLoss {
    Logits logits;
    Indices label;       // (B, H, W)
    const void* weight;  // (B, H, W)
    void* cross_entropy;  // ()
    void* overlap;        // (3, C)
    ParallelTasks parallel;
};

struct SegmentationLossBackward {
    const void* grad_cross_entropy;  // ()
    const void* grad_overlap;        // (3, C)
    Logits logits;
    Indices label;
    const void* weight;
    void* grad_logits;  // in the logits' storage
    ParallelTasks parallel;
};

struct PseudoLabel {
    Logits logits;
    uint8_t* label;    // (B, H, W)
    void* confidence;  // (B, H, W)
    ParallelTasks parallel;
};

struct SignedDistance {
    Indices label;  // (B, H, W)
    int64_t batch, classes, height, width;
    float* distance;  // (B, C, H, W)
    ParallelTasks parallel;
};

}  // namespace mpamatch
