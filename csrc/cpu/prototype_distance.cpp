// Compiled once per instruction set.
#include "core/prototype_distance.h"

namespace mpamatch::MPAMATCH_ISA {

void run_kernel(const PrototypeDistanceArguments& a, ParallelTasks parallel) {
    with_working(a.embedding.element, [&](auto real) { prototype_distance<decltype(real)>(a, parallel); });
}

void run_kernel(const PrototypeDistanceBackwardArguments& a, ParallelTasks parallel) {
    with_working(a.embedding.element, [&](auto real) { prototype_distance_backward<decltype(real)>(a, parallel); });
}

}  // namespace mpamatch::MPAMATCH_ISA
