// Compiled once per instruction set.
#include "core/segmentation_loss.h"

namespace mpamatch::MPAMATCH_ISA {

void run_kernel(const SegmentationLossArguments& a, ParallelTasks parallel) {
    with_working(a.logits.element, [&](auto real) { segmentation_loss<decltype(real)>(a, parallel); });
}

void run_kernel(const SegmentationLossBackwardArguments& a, ParallelTasks parallel) {
    with_working(a.logits.element, [&](auto real) { segmentation_loss_backward<decltype(real)>(a, parallel); });
}

}  // namespace mpamatch::MPAMATCH_ISA
