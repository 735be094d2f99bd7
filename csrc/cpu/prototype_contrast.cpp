// Compiled once per instruction set.
#include "core/prototype_contrast.h"

namespace mpamatch::MPAMATCH_ISA {

void run_kernel(const PrototypeContrastArguments& a, ParallelTasks parallel) {
    with_working(a.embedding.element, [&](auto real) { prototype_contrast<decltype(real)>(a, parallel); });
}

void run_kernel(const PrototypeContrastBackwardArguments& a, ParallelTasks parallel) {
    with_working(a.embedding.element, [&](auto real) { prototype_contrast_backward<decltype(real)>(a, parallel); });
}

}  // namespace mpamatch::MPAMATCH_ISA
