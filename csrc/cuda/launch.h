// What library.cpp, which knows torch, and the launchers, which know CUDA, have in common: neither includes the other's
// headers. A launcher queues its work on a stream and returns; it throws std::runtime_error where CUDA refuses.
#pragma once

#include <cstdint>
#include <functional>

#include "index.h"

namespace mpamatch::cuda {

enum class Element { f32, f16, bf16, f64 };

// Where to run, and how to get memory that lives until the work queued so far is done.
struct Place {
    int device;
    void* stream;
    std::function<unsigned char*(std::int64_t bytes)> allocate;
};

struct Rows {
    const void* data;  // (count, width), rows `stride` elements apart
    Element element;
    std::int64_t count;
    std::int64_t stride;
    int width;
};

struct ScoreArguments {
    Rows embedding;
    const void* prototypes;
    int classes;
    int per_class;
    Index label;
    double epsilon;
    bool shifted;
    void* score;
    void* reduced;
};
void launch_score(const ScoreArguments& arguments, const Place& place);

struct StepArguments {
    bool f64;  // everything below, else f32
    const void* score;
    Index label;
    std::int64_t pixels;
    int classes;
    int per_class;
    const void* log_u;
    const void* total;
};
void launch_step(const StepArguments& arguments, bool rows, void* new_log_u, void* new_total, const Place& place);
void launch_pick(const StepArguments& arguments, std::int32_t* assignment, const Place& place);

struct SumArguments {
    Rows embedding;
    Index assignment;
    const void* weight;  // or null
    int prototypes;
    void* total;
};
void launch_sum(const SumArguments& arguments, const Place& place);

struct MoveArguments {
    bool f64;
    void* prototypes;
    std::int64_t* updates;
    const void* total;
    int count;
    int width;
    double momentum;
};
void launch_move(const MoveArguments& arguments, const Place& place);

struct DistanceArguments {
    Index label;  // (batch, height, width)
    std::int64_t batch;
    int classes;
    int height;
    int width;
    float* distance;  // (batch, classes, height, width)
};
void launch_distance(const DistanceArguments& arguments, const Place& place);

}  // namespace mpamatch::cuda
