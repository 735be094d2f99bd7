// Compiled once per instruction set.
#include "core/sinkhorn_assign.h"

namespace mpamatch::MPAMATCH_ISA {

void run_kernel(const SinkhornAssignArguments& a, ParallelTasks parallel) {
    with_working(a.embedding.element, [&](auto real) { sinkhorn_assign<decltype(real)>(a, parallel); });
}

void run_kernel(const SinkhornScoreArguments& a, ParallelTasks parallel) {
    with_working(a.embedding.element, [&](auto real) { sinkhorn_score<decltype(real)>(a, parallel); });
}

void run_kernel(const SinkhornStepArguments& a, ParallelTasks parallel) {
    with_working(a.element, [&](auto real) { sinkhorn_step<decltype(real)>(a, parallel); });
}

void run_kernel(const SinkhornPickArguments& a, ParallelTasks parallel) {
    with_working(a.element, [&](auto real) { sinkhorn_pick<decltype(real)>(a, parallel); });
}

}  // namespace mpamatch::MPAMATCH_ISA
