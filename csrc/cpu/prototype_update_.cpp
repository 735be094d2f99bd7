// Compiled once per instruction set.
#include "core/prototype_update_.h"

namespace mpamatch::MPAMATCH_ISA {

void run_kernel(const PrototypeSumArguments& a, ParallelTasks parallel) {
    with_working(a.embedding.element, [&](auto real) { prototype_sum<decltype(real)>(a, parallel); });
}

void run_kernel(const PrototypeMoveArguments& a, ParallelTasks) {
    with_working(a.element, [&](auto real) { prototype_move_<decltype(real)>(a); });
}

}  // namespace mpamatch::MPAMATCH_ISA
