// Compiled once per instruction set.
#include "core/pseudo_label.h"

namespace mpamatch::MPAMATCH_ISA {

void run_kernel(const PseudoLabelArguments& a, ParallelTasks parallel) {
    with_working(a.logits.element, [&](auto real) { pseudo_label<decltype(real)>(a, parallel); });
}

}  // namespace mpamatch::MPAMATCH_ISA
