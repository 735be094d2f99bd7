// Compiled once per instruction set.
#include "core/segmentation_loss.h"

#include "cpu/table.h"

namespace mpamatch::MPAMATCH_ISA {

void add_segmentation_loss(Kernels& kernels) {
    kernels.segmentation_loss = [](const SegmentationLoss& a) { a.logits.element == Element::f64 ? segmentation_loss<double>(a) : segmentation_loss<float>(a); };
    kernels.segmentation_loss_backward = [](const SegmentationLossBackward& a) { a.logits.element == Element::f64 ? segmentation_loss_backward<double>(a) : segmentation_loss_backward<float>(a); };
}

}  // namespace mpamatch::MPAMATCH_ISA
